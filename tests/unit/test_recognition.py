"""Which transcripts of a speech are preflight transcripts, on which the reply is generated."""

from __future__ import annotations

from livekit.agents import stt

from labvoice.speech.recognition import Preflights, same_words

_INTERIM = stt.SpeechEventType.INTERIM_TRANSCRIPT
_PREFLIGHT = stt.SpeechEventType.PREFLIGHT_TRANSCRIPT


def test_case_punctuation_and_numerals_are_no_other_words() -> None:
    """A reply to the same words is not generated again for a comma, or for `6` after `six`."""
    assert same_words("A taxi at six", "A taxi at 6.")
    assert not same_words("A taxi at six", "A taxi at 7.")
    assert same_words("What is it, now?", "what is it now.")
    assert same_words("", "")
    assert not same_words("What is it now?", "What is it?")
    assert not same_words("What is it?", "")


def test_without_early_ones_the_silence_alone_asks() -> None:
    """Transcripts of speech are interim ones, and a pause asks for nothing."""
    preflights = Preflights(early=False)
    for _ in range(3):
        assert preflights.decoded("What is the weather", speaking=True) is _INTERIM
    assert not preflights.paused()
    assert preflights.decoded("What is the weather?", speaking=False) is _PREFLIGHT


def test_a_second_decode_of_the_same_words_makes_a_preflight() -> None:
    """It is given once, and again only when the words have changed."""
    preflights = Preflights(early=True)
    assert preflights.decoded("What is the", speaking=True) is _INTERIM
    assert preflights.decoded("What is the weather", speaking=True) is _INTERIM
    assert preflights.decoded("What is the weather?", speaking=True) is _PREFLIGHT
    assert preflights.decoded("What is the weather.", speaking=False) is None
    assert preflights.final("What is the weather.") == "What is the weather?"
    assert preflights.decoded("What is the weather now?", speaking=False) is _PREFLIGHT
    assert preflights.final("What is the weather now?") == "What is the weather now?"


def test_the_latest_words_are_a_preflight_where_the_voice_pauses() -> None:
    """Not twice, and not where there are too few of them."""
    preflights = Preflights(early=True)
    preflights.decoded("What is", speaking=True)
    assert not preflights.paused()
    preflights.decoded("What is the weather", speaking=True)
    assert preflights.paused() == "What is the weather"
    assert not preflights.paused()
    assert preflights.decoded("What is the weather", speaking=False) is None


def test_words_that_came_and_went_are_asked_again() -> None:
    """LiveKit gives a reply up when other words come, so the first ones need a new one."""
    preflights = Preflights(early=True)
    preflights.decoded("What is the weather", speaking=False)
    assert preflights.decoded("What is the weather or", speaking=True) is _INTERIM
    assert preflights.decoded("What is the weather", speaking=False) is _PREFLIGHT


def test_early_ones_are_limited() -> None:
    """However long the speech, some requests to the model at most are withdrawn; the end asks."""
    preflights = Preflights(early=True)
    asked = 0
    for number in range(20):
        preflights.decoded(f"one two three {number}", speaking=True)
        asked += bool(preflights.paused())
    assert 1 <= asked <= 5
    preflights.decoded(f"{'one two three ' * 4} four", speaking=True)
    assert preflights.paused()
    assert preflights.decoded("one two three and four", speaking=False) is _PREFLIGHT
