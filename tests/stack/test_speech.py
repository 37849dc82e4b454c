"""The embedded speech with its real models: what is said is understood, silence is not."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import metrics, stt, tts
from livekit.agents.types import USERDATA_TTS_STARTED_TIME
from livekit.local_inference import VAD_WINDOW_SAMPLES

from labvoice.concurrency import poll
from labvoice.errors import AudioFormatError, ModelError
from labvoice.settings import Settings, load_settings
from labvoice.speech import utterances as voice
from labvoice.speech.detection import find_speech, resample
from labvoice.speech.embedded import load_moonshine, load_piper
from labvoice.speech.moonshine import SAMPLE_RATE, Moonshine
from labvoice.speech.piper import Piper
from labvoice.speech.recognition import MoonshineSTT
from labvoice.speech.synthesis import PiperTTS
from labvoice.speech.weights import require
from tests.stack.talking import PATIENCE_S

Kind = stt.SpeechEventType


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The user's own settings, so that weights are obtained once for all runs."""
    return load_settings()


@pytest.fixture(scope="module")
def recogniser(settings: Settings) -> MoonshineSTT:
    """The default recogniser."""
    return load_moonshine(settings)


@pytest.fixture(scope="module")
def synthesiser(settings: Settings) -> PiperTTS:
    """The default voice."""
    return load_piper(settings)


def _error_rate(said: list[str], heard: list[str]) -> float:
    def words(text: str) -> str:
        return re.sub(r"[^a-z0-9' ]", "", text.lower().replace("-", " "))

    return float(jiwer.wer([words(text) for text in said], [words(text) for text in heard]))


async def _recognise(
    recogniser: MoonshineSTT, samples: voice.Pcm, rate: int, *, rest_s: float = 0.6
) -> list[stt.SpeechEvent]:
    """Streams samples and some silence after them; returns the events."""
    rest = np.zeros(int(rest_s * rate), np.int16)
    audio, step = np.concatenate([rest, samples, rest]), rate // 100
    async with recogniser.stream() as stream:
        for start in range(0, len(audio) - step + 1, step):
            data = audio[start : start + step].tobytes()
            stream.push_frame(rtc.AudioFrame(data, rate, 1, step))
        stream.end_input()
        return [event async for event in stream]


def _texts(events: list[stt.SpeechEvent], kind: Kind) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type == kind]


async def _say(synthesiser: PiperTTS, text: str) -> voice.Pcm:
    async with synthesiser.synthesize(text) as stream:
        return np.frombuffer((await stream.collect()).data, np.int16)


@pytest.mark.smoke
async def test_human_speech_is_recognised(settings: Settings, recogniser: MoonshineSTT) -> None:
    """Clauses read by a person come out whole, one transcript each, with few wrong words."""
    utterances = voice.human_utterances(settings)
    heard = []
    for utterance in utterances:
        events = await _recognise(recogniser, utterance.samples, utterance.sample_rate)
        heard += _texts(events, Kind.FINAL_TRANSCRIPT)
    assert len(heard) == len(utterances) >= 4
    assert _error_rate([u.text for u in utterances], heard) <= 0.10


@pytest.mark.parametrize("early", [False, True])
async def test_events_come_in_order(
    settings: Settings, recogniser: MoonshineSTT, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start, preflight, end, final; the last preflight transcript is already the final one."""
    monkeypatch.setattr(recogniser, "early", early)
    utterance = voice.human_utterances(settings)[0]
    events = await _recognise(recogniser, utterance.samples, utterance.sample_rate)
    kinds = [event.type for event in events if event.type != Kind.INTERIM_TRANSCRIPT]
    assert kinds[0] == Kind.START_OF_SPEECH
    assert kinds[-4:] == [
        Kind.PREFLIGHT_TRANSCRIPT,
        Kind.END_OF_SPEECH,
        Kind.FINAL_TRANSCRIPT,
        Kind.RECOGNITION_USAGE,
    ]
    final = _texts(events, Kind.FINAL_TRANSCRIPT)
    assert _texts(events, Kind.PREFLIGHT_TRANSCRIPT)[-1:] == final
    assert _error_rate([utterance.text], final) <= 0.2


async def test_words_that_stand_alone_are_final_after_a_shorter_silence(
    settings: Settings, recogniser: MoonshineSTT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence is counted in windows of 32 ms, each given when what was before is decoded."""
    monkeypatch.setattr(recogniser, "early", False)
    utterance = voice.human_utterances(settings)[0]
    said = utterance.samples[: utterance.speech.last + 1]
    speech = resample(said, utterance.sample_rate, SAMPLE_RATE)

    async def silent_windows() -> int:
        seen: list[stt.SpeechEventType] = []

        async def follow() -> None:
            async for event in stream:
                seen.append(event.type)

        def push(samples: voice.Pcm) -> None:
            stream.push_frame(rtc.AudioFrame(samples.tobytes(), SAMPLE_RATE, 1, len(samples)))

        async with recogniser.stream() as stream, asyncio.timeout(PATIENCE_S):
            following = asyncio.create_task(follow())
            push(np.concatenate([np.zeros(SAMPLE_RATE, np.int16), speech]))
            silences = 0
            while Kind.FINAL_TRANSCRIPT not in seen:
                push(np.zeros(VAD_WINDOW_SAMPLES, np.int16))
                silences += 1
                if silences >= 5:
                    await poll(lambda: Kind.PREFLIGHT_TRANSCRIPT in seen, 2.0, 0.02)
                await asyncio.sleep(0.05)
            stream.end_input()
            await following
        return silences

    monkeypatch.setattr(recogniser, "ended", lambda _: False)
    late = await silent_windows()
    monkeypatch.setattr(recogniser, "ended", lambda _: True)
    assert await silent_windows() <= late - 2


def test_what_forked_processes_share_leaves_no_thread(settings: Settings) -> None:
    """The weights are loaded once; a forked process would miss a thread that they had started."""
    code = """
import os
import onnxruntime  # starts one by itself
from labvoice.speech import embedded, engines
from labvoice.settings import load_settings
made = []
class Counted(embedded.Moonshine):
    def __init__(self, *arguments):
        made.append(self)
        super().__init__(*arguments)
embedded.Moonshine = Counted
before = len(os.listdir("/proc/self/task"))
for engine in engines.both(load_settings()):
    engine.preload(load_settings())
started = len(os.listdir("/proc/self/task")) - before
counts = [len(made)]
for _ in range(2):
    engines.stt_engine(load_settings()).load(load_settings())
    counts.append(len(made))
print(started, *counts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "1", "1", "2"], done.stderr


def test_a_draft_saves_time_and_changes_no_word(settings: Settings) -> None:
    """A decode that begins with a right, a wrong or an overlong draft finds the same words."""
    model = Moonshine(require("moonshine-base", settings))
    for utterance in voice.human_utterances(settings)[:4]:
        pcm = resample(utterance.samples, utterance.sample_rate, SAMPLE_RATE)
        whole = model.decode(pcm)
        early = model.decode(pcm[: len(pcm) * 2 // 3])
        for draft in (early, [*early[:3], 5, 6, 7], whole, [*whole, *early]):
            heard = model.decode(pcm, draft=draft)
            assert _error_rate([model.text(whole)], [model.text(heard)]) == 0


async def test_two_turns_on_one_stream(settings: Settings, recogniser: MoonshineSTT) -> None:
    """Utterances one after another on one stream get a transcript each."""
    first, second = voice.human_utterances(settings)[:2]
    pause = np.zeros(first.sample_rate, np.int16)
    both = np.concatenate([first.samples, pause, second.samples])
    events = await _recognise(recogniser, both, first.sample_rate)
    assert len(_texts(events, Kind.FINAL_TRANSCRIPT)) == 2


async def test_flush_ends_speech_at_once(settings: Settings, recogniser: MoonshineSTT) -> None:
    """The end of the input gives a final transcript without waiting for silence."""
    utterance = voice.human_utterances(settings)[0]
    events = await _recognise(recogniser, utterance.samples, utterance.sample_rate, rest_s=0.05)
    assert _error_rate([utterance.text], _texts(events, Kind.FINAL_TRANSCRIPT)) <= 0.2


@pytest.mark.parametrize("level", [0, 30, 1000])
async def test_no_speech_no_transcript(recogniser: MoonshineSTT, level: int) -> None:
    """Silence and noise, faint or loud, give no event at all."""
    noise = np.random.default_rng(1).normal(0, level, 4 * 48000).astype(np.int16)
    assert await _recognise(recogniser, noise, 48000) == []


async def test_recogniser_takes_whole_clips(settings: Settings, recogniser: MoonshineSTT) -> None:
    """Recognition of one buffer works beside the streaming one."""
    utterance = voice.human_utterances(settings)[0]
    frame = rtc.AudioFrame(
        utterance.samples.tobytes(), utterance.sample_rate, 1, len(utterance.samples)
    )
    event = await recogniser.recognize(frame)
    assert _error_rate([utterance.text], [event.alternatives[0].text]) <= 0.2


async def test_tiny_recogniser(settings: Settings) -> None:
    """The small recogniser understands a person, too."""
    utterance = voice.human_utterances(settings)[0]
    tiny = load_moonshine(settings, "tiny")
    events = await _recognise(tiny, utterance.samples, utterance.sample_rate)
    assert _error_rate([utterance.text], _texts(events, Kind.FINAL_TRANSCRIPT)) <= 0.2
    await tiny.aclose()


@pytest.mark.smoke
async def test_what_the_voice_says_is_understood(
    synthesiser: PiperTTS, recogniser: MoonshineSTT
) -> None:
    """The voice's words are recognised, clause by clause or whole."""
    texts = [
        "Of course, I can help you with that. What would you like to know?",
        "The train to London leaves at half past nine, and it takes two hours.",
    ]
    heard = []
    for text in texts:
        samples = await _say(synthesiser, text)
        events = await _recognise(recogniser, samples, synthesiser.sample_rate)
        heard.append(" ".join(_texts(events, Kind.FINAL_TRANSCRIPT)))
    assert _error_rate(texts, heard) <= 0.10


async def test_first_clause_is_spoken_before_the_sentence_ends(synthesiser: PiperTTS) -> None:
    """Audio comes while the sentence is being written, marked with when its synthesis began."""
    collected: list[metrics.TTSMetrics] = []
    synthesiser.on("metrics_collected", collected.append)
    async with synthesiser.stream() as stream:
        for piece in ("Of", " course", ",", " I", " can"):
            stream.push_text(piece)
        first = await asyncio.wait_for(anext(stream), timeout=30)
        assert first.frame.duration >= 0.05
        assert USERDATA_TTS_STARTED_TIME in first.frame.userdata
        stream.push_text(" help you.")
        stream.end_input()
        rest = [audio async for audio in stream]
    synthesiser.off("metrics_collected", collected.append)
    assert rest[-1].is_final
    spoken_s = first.frame.duration + sum(audio.frame.duration for audio in rest)
    assert collected[0].audio_duration == pytest.approx(spoken_s, abs=0.001)
    assert collected[0].ttfb > 0


async def test_speech_begins_at_once(synthesiser: PiperTTS) -> None:
    """No silence is left before the first word."""
    speech = find_speech(await _say(synthesiser, "Hello there."), synthesiser.sample_rate)
    assert speech is not None
    assert speech.first / synthesiser.sample_rate <= 0.03


async def test_cancelled_speech_frees_the_voice(synthesiser: PiperTTS) -> None:
    """After an interruption the next reply is spoken, from its own beginning."""
    stream = synthesiser.stream()
    stream.push_text("This is a rather long sentence that nobody is going to hear to its end. " * 5)
    stream.end_input()
    await asyncio.wait_for(anext(stream), timeout=30)
    await asyncio.wait_for(stream.aclose(), timeout=30)
    alone = await asyncio.wait_for(_say(synthesiser, "Yes."), timeout=30)
    assert len(alone) / synthesiser.sample_rate < 2


@pytest.mark.parametrize("text", ["...", "?!", "  \n"])
async def test_unspeakable_text_is_a_moment_of_silence(synthesiser: PiperTTS, text: str) -> None:
    """Text without a sound is no failed request: it is over at once, without an error."""
    errors: list[tts.TTSError] = []
    synthesiser.on("error", errors.append)
    async with synthesiser.stream() as stream:
        stream.push_text(text)
        stream.end_input()
        samples = [
            sample async for audio in stream for sample in np.frombuffer(audio.frame.data, np.int16)
        ]
    synthesiser.off("error", errors.append)
    assert errors == []
    assert not any(samples)
    assert len(samples) / synthesiser.sample_rate < 0.1


async def test_caller_is_understood(settings: Settings, recogniser: MoonshineSTT) -> None:
    """Every default utterance is recognised, in one stretch or two, with few wrong words."""
    utterances = voice.synthesize_all(voice.DEFAULT_UTTERANCES, settings)
    heard = []
    for utterance in utterances:
        assert 1.5 <= utterance.duration_s <= 6
        events = await _recognise(recogniser, utterance.samples, utterance.sample_rate)
        heard.append(" ".join(_texts(events, Kind.FINAL_TRANSCRIPT)))
    assert all(heard)
    assert _error_rate([u.text for u in utterances], heard) <= 0.10


def test_synthesis_is_kept(settings: Settings) -> None:
    """A text once synthesised is read back from disk, sample for sample."""
    first, again = (voice.synthesize(voice.DEFAULT_UTTERANCES[0], settings) for _ in range(2))
    assert np.array_equal(first.samples, again.samples)
    told: list[str] = []
    voice.synthesize(voice.DEFAULT_UTTERANCES[0], settings, told.append)
    assert told == []


def test_nothing_to_say_is_refused(settings: Settings) -> None:
    """A text without a speakable word is refused in words."""
    with pytest.raises(AudioFormatError, match="0 phonemes"):
        voice.synthesize("...", settings)


def test_unloadable_models_are_refused(tmp_path: Path) -> None:
    """Files that are no models give an error that names them."""
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.bin", "voice.json"):
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"encoder_model\.onnx cannot be loaded"):
        Moonshine(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        Piper(tmp_path)
