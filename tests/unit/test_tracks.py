"""The agent's voice among its tracks, on samples whose truth is known."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from labvoice.caller.ear import SAMPLE_RATE_HZ
from labvoice.caller.tracks import BACKGROUND_TRACK, Ear
from labvoice.settings import load_settings
from labvoice.speech.detection import resample
from labvoice.speech.utterances import SAMPLE_RATE, human_utterances

Samples = npt.NDArray[np.int16]

FRAME = SAMPLE_RATE_HZ // 100
SILENCE_S = 6
WITHIN_S = 0.03


def clip(name: str, count: int) -> Samples:
    """A sound of LiveKit's background player at its default volume, as long as is asked for."""
    sound, rate = soundfile.read(str(files("livekit.agents.resources") / name), always_2d=True)
    mono = resample(sound.mean(axis=1) * 32768, rate, SAMPLE_RATE_HZ)
    return np.resize(mono, count)


@pytest.fixture(scope="module")
def voice() -> Samples:
    """A clause spoken by a human, between two stretches of silence."""
    clause = human_utterances(load_settings())[0]
    spoken = resample(clause.samples, SAMPLE_RATE, SAMPLE_RATE_HZ)
    loud = np.clip(spoken * (3277 / np.std(spoken)), -32768, 32767).astype(np.int16)
    silence = np.zeros(SILENCE_S * SAMPLE_RATE_HZ, np.int16)
    return np.concatenate([silence, loud, silence])


def hear(**tracks: Samples) -> Ear:
    """Feeds tracks of one length side by side, a frame each, from instant 0."""
    ear = Ear()
    for name in tracks:
        ear.add(name, name=name, publisher="agent")
    for number in range(min(map(len, tracks.values())) // FRAME):
        for name, samples in tracks.items():
            frame = samples[number * FRAME : (number + 1) * FRAME]
            ear.tracks[name].listener.feed(frame, number * 0.01)
    return ear


def test_one_track_alone_has_the_voice(voice: Samples) -> None:
    """Without anything beside it, a voice is found where the listener of its track finds it."""
    ear = hear(voice=voice)
    assert len(ear.voices) == 1
    assert ear.silent
    assert ear.notices == []


@pytest.mark.parametrize(
    ("sound", "name"),
    [
        ("office-ambience.ogg", "sounds"),
        ("hold_music.ogg", "sounds"),
        ("crowded-room.ogg", BACKGROUND_TRACK),  # it is speech: only the track's name tells
    ],
)
def test_a_track_of_ambience_beside_the_voice_changes_nothing(
    voice: Samples, sound: str, name: str
) -> None:
    """The reply begins within 30 ms of the clean case, whatever a background player plays."""
    (clean,) = hear(voice=voice).voices
    ear = hear(**{name: clip(sound, len(voice)), "voice": voice})
    onset_s = ear.onset_since(SILENCE_S - 1)
    assert onset_s is not None
    assert abs(onset_s - clean.start_s) <= WITHIN_S
    assert ear.silent


def test_a_voice_mixed_with_ambience_is_dated_above_the_floor(voice: Samples) -> None:
    """In one and the same track, both ends lie within 30 ms of the clean case."""
    (clean,) = hear(voice=voice).voices
    mixed = voice.astype(np.int32) + clip("office-ambience.ogg", len(voice))
    (heard,) = hear(voice=np.clip(mixed, -32768, 32767).astype(np.int16)).voices
    assert abs(heard.start_s - clean.start_s) <= WITHIN_S
    assert abs(heard.end_s - clean.end_s) <= WITHIN_S


@pytest.mark.parametrize(("share", "uncertain_s"), [(1.0, 0.25), (0.25, 0.06)])
def test_a_voice_mixed_with_music_says_how_uncertain_its_beginning_is(
    voice: Samples, share: float, uncertain_s: float
) -> None:
    """In one track with music, as loud as the voice or a quarter of that, it is off by no more."""
    (clean,) = hear(voice=voice).voices
    assert clean.uncertainty_s == 0
    music = clip("hold_music.ogg", len(voice)) * share
    ear = hear(voice=np.clip(voice + music, -32768, 32767).astype(np.int16))
    heard = ear.voice_since(SILENCE_S - 1)
    assert heard is not None
    assert heard.uncertainty_s == uncertain_s
    assert abs(heard.start_s - clean.start_s) <= uncertain_s
    assert "there is noise only" in heard.doubt


def test_a_track_that_is_never_silent_is_named(voice: Samples) -> None:
    """The warning says which track it is and whose."""
    ear = hear(voice=voice, hold=clip("hold_music.ogg", len(voice)))
    (notice,) = ear.notices
    assert "'hold' of 'agent' is never silent" in notice


def test_late_replaced_and_second_tracks_are_heard(voice: Samples) -> None:
    """A track that ends takes its voice with it, and the next one's is another."""
    ear = Ear()
    loud = voice[SILENCE_S * SAMPLE_RATE_HZ :][: FRAME * 100]
    silence = np.zeros(FRAME * 100, np.int16)
    for number, sid in enumerate(("first", "second")):
        ear.add(sid, name="voice", publisher="agent")
        for place in range(200):
            samples = np.concatenate([silence, loud])[place * FRAME : (place + 1) * FRAME]
            ear.tracks[sid].listener.feed(samples, number * 5.0 + place * 0.01)
        assert not ear.silent
        ear.end(sid)
        assert ear.silent
    assert len(ear.voices) == 2
    assert ear.onset_since(4.0) == pytest.approx(6.0, abs=0.1)


def test_two_tracks_that_speak_at_once_are_one_voice(voice: Samples) -> None:
    """An avatar that repeats its agent's voice makes no second reply."""
    late = np.concatenate([np.zeros(FRAME * 20, np.int16), voice])[: len(voice)]
    assert len(hear(agent=voice, avatar=late).voices) == 1
