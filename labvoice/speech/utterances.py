"""Utterances of the simulated caller: recorded, synthesised, or the user's own recording."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from labvoice.errors import AudioFormatError, UsageError
from labvoice.settings import Settings
from labvoice.speech.detection import Speech, find_speech, is_silent, resample
from labvoice.speech.mono import CONVERT_HINT, Channel, check_channel, peak_dbfs, to_mono
from labvoice.speech.phonemes import phonemize
from labvoice.speech.weights import Progress, require

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE: Final = 48000
"""Sample rate of every utterance, in Hz: WebRTC's, so nothing is resampled on the way."""

DEFAULT_UTTERANCES: Final = (
    "What is the weather going to be like tomorrow?",
    "Please remind me to call my sister tonight.",
    "How long does it take to boil an egg?",
    "Which bus goes to the city centre?",
    "Tell me a short story about a dog.",
    "Can you book a table for two people?",
    "I would like to change my appointment.",
    "What did I ask you to buy yesterday?",
    "Is the pharmacy open on Sunday morning?",
)
"""Typical sentences of a caller to an assistant, 2 to 3 s each.

Fixed before any was synthesised or measured, and none was removed later, so the rates of missed
turn ends and misrecognised words are not biased by selection.
"""

FURTHER_UTTERANCES: Final = (
    "Could you turn the heating down a little?",
    "I need a taxi to the airport at six.",
    "What time does the museum close today?",
    "Please read me the last message again.",
    "My parcel should have arrived on Monday.",
    "How much does a return ticket cost?",
    "Is there a doctor near the station?",
    "I have lost the key to my room.",
    "Can I bring my dog to the hotel?",
    "Please move the meeting to Friday afternoon.",
    "What was the name of that restaurant?",
)
"""Eleven more for runs of more rounds, likewise fixed before any was synthesised or measured."""

# Dickens, "A Tale of Two Cities" (1859, public domain): every part of at least 2 s between pauses
# of at least 0.3 s in the recording of it in the package moonshine-voice, as start and end in
# seconds. None is left out because of how well it is recognised.
_RECORDED: Final = (
    ((1.17, 4.58), "It was the best of times, it was the worst of times."),
    ((10.74, 12.81), "It was the epoch of incredulity."),
    ((17.54, 20.49), "It was the spring of hope, it was the winter of despair."),
    ((21.22, 24.03), "We had everything before us, we had nothing before us."),
    ((29.90, 32.29), "The period was so far like the present period."),
    ((32.76, 36.60), "That some of its noisiest authorities insisted on its being received."),
    ((36.92, 41.66), "For good or for evil, in the superlative degree of comparison only."),
)

# Several of those parts in a row, with the reader's own pauses between them.
_PASSAGES: Final = (
    (
        (1.17, 8.40),
        "It was the best of times, it was the worst of times, it was the age of wisdom, "
        "it was the age of foolishness,",
    ),
    ((8.75, 12.94), "it was the epoch of belief, it was the epoch of incredulity,"),
    ((13.40, 16.85), "it was the season of Light, it was the season of Darkness,"),
    (
        (17.54, 24.14),
        "it was the spring of hope, it was the winter of despair, we had everything before us, "
        "we had nothing before us,",
    ),
    ((24.56, 28.43), "we were all going direct to Heaven, we were all going direct the other way."),
    (
        (29.04, 36.75),
        "In short, the period was so far like the present period, that some of its noisiest "
        "authorities insisted on its being received",
    ),
    (
        (29.90, 41.81),
        "the period was so far like the present period, that some of its noisiest authorities "
        "insisted on its being received, for good or for evil, in the superlative degree of "
        "comparison only.",
    ),
)

# The parts of at least 1 s that the first rule leaves out, and the one with which the reader says
# "In short": the same pauses of 0.3 s and more around them.
_RECORDED_SHORT: Final = (
    ((4.90, 6.45), "It was the age of wisdom."),
    ((6.55, 8.40), "It was the age of foolishness."),
    ((8.70, 10.50), "It was the epoch of belief."),
    ((24.50, 26.25), "We were all going direct to Heaven."),
    ((26.42, 28.50), "We were all going direct the other way."),
    ((29.00, 32.50), "In short, the period was so far like the present period."),
)

Reading = Literal["clauses", "passages", "short"]
_READINGS: Final[Mapping[Reading, Sequence[tuple[tuple[float, float], str]]]] = {
    "clauses": _RECORDED,
    "passages": _PASSAGES,
    "short": _RECORDED_SHORT,
}

_KOKORO_RATE = 24000
# A Japanese speaker, as are all five voices that come with the model: the one that the embedded
# recogniser understood best in thirty sentences that are none of the default ones (word error
# rates of the five 4 to 7 %).
DEFAULT_SPEAKER: Final = "jf_gongitsune"
SPEAKERS: Final = ("jf_alpha", DEFAULT_SPEAKER, "jf_nezumi", "jf_tebukuro", "jm_kumo")
"""The caller's synthetic voices of Kokoro."""
AMERICAN: Final = "joe"
"""The voice of Piper, which is also that of labvoice's own agent."""
_KOKORO_MAX_TOKENS = 510
_EDGE_S = 0.02
_AUDIO_SUFFIXES = frozenset(
    (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aif", ".aiff", ".au")
)


@dataclass(frozen=True, eq=False)
class Utterance:
    """An utterance: its samples, converted to the format that the caller sends.

    Args:
        text: The words; empty if unknown.
        samples: Shape (n,), (n, 1) or (n, 2); integers of 8 (unsigned), 16 or 32 bits, or floats
            of which 1.0 is full scale. They are converted to 16 bits, mixed to mono and resampled
            to :data:`SAMPLE_RATE`.
        sample_rate: Sample rate of the given samples, in Hz.
        source: Origin: `human`, `kokoro`, `piper`, `file`, or any other word.
        notice: A notable conversion of the recording; otherwise empty.

    Attributes:
        samples: Shape (n,), int16, mono, at :data:`SAMPLE_RATE`.
        sample_rate: :data:`SAMPLE_RATE`.

    Raises:
        AudioFormatError: The samples have another form, or two channels of which the caller's is
            not clear.
    """

    text: str
    samples: npt.NDArray[Any]
    sample_rate: int
    source: str
    notice: str = ""

    def __post_init__(self) -> None:
        samples, notice = to_mono(np.asarray(self.samples), self.sample_rate)
        notice = "; ".join(filter(None, (self.notice, notice)))
        object.__setattr__(self, "samples", resample(samples, self.sample_rate, SAMPLE_RATE))
        object.__setattr__(self, "sample_rate", SAMPLE_RATE)
        object.__setattr__(self, "notice", notice)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @functools.cached_property
    def speech(self) -> Speech:
        """Where speech begins and ends; blocks at first use, for some 3 ms per second of audio."""
        if is_silent(self.samples, SAMPLE_RATE):
            return Speech(0, len(self.samples) - 1, "it is silent, or too quiet to be heard")
        found = find_speech(self.samples, SAMPLE_RATE)
        assert found is not None
        return found


def make_utterance(
    what: str | Path, channel: Channel | None, settings: Settings, progress: Progress | None = None
) -> Utterance:
    """Returns an utterance: a recording, or synthesised from text; see `Lab.utterance`. Blocks."""
    path = what if isinstance(what, Path) else audio_file(what)
    if path is not None:
        return load_wav(path, channel)
    if channel is not None:
        raise UsageError("a text has no channels", "give `channel` with a recording only")
    return synthesize(str(what), settings, progress)


def audio_file(text: str) -> Path | None:
    """Returns the path if a text names an audio file; None if it is words."""
    try:
        path = Path(text)
        if path.is_file():
            return path
    except (OSError, ValueError):  # too long for a path, or with an invalid character
        return None
    one_word = not any(sign.isspace() for sign in path.name)
    return path if one_word and path.suffix.lower() in _AUDIO_SUFFIXES else None


def human_utterances(
    settings: Settings, progress: Progress | None = None, *kinds: Reading
) -> list[Utterance]:
    """Returns what a person has read, with little silence around each.

    Blocks, at first use for the download: call it in a thread.

    Args:
        kinds: `clauses` of 2 to 5 s (the default), further `short` ones, or `passages` of several
            clauses, 3 to 12 s, with the reader's pauses.

    Raises:
        WeightsError: The recording cannot be obtained.
    """
    path = require("human-speech", settings, progress) / "two_cities.wav"
    whole = load_wav(path).samples
    return [
        Utterance(
            text,
            _trimmed(whole[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]),
            SAMPLE_RATE,
            "human",
        )
        for kind in kinds or ("clauses",)
        for (start_s, end_s), text in _READINGS[kind]
    ]


def synthesize(text: str, settings: Settings, progress: Progress | None = None) -> Utterance:
    """Synthesises a text with Kokoro; see :func:`synthesize_all`."""
    return synthesize_all([text], settings, progress)[0]


def synthesize_all(
    texts: Sequence[str],
    settings: Settings,
    progress: Progress | None = None,
    *,
    speaker: str = DEFAULT_SPEAKER,
    speed: float = 1.0,
) -> list[Utterance]:
    """Synthesises texts of up to some 30 words with Kokoro or Piper; results are cached on disk.

    Blocks for a fifth of the speech's duration, and at first use for the download: call it in a
    thread.

    Args:
        speaker: One of :data:`SPEAKERS`, or :data:`AMERICAN`.
        speed: Of the speech; 1 is the speaker's own.

    Raises:
        WeightsError: The model cannot be obtained.
        AudioFormatError: A text has nothing that can be spoken.
        UsageError: There is no such speaker.
    """
    check_speaker(speaker)
    folder = settings.cache_dir / "utterances"
    model: _Kokoro | _Piper | None = None
    source = "piper" if speaker == AMERICAN else "kokoro"
    utterances = []
    for text in texts:
        key = hashlib.sha256(f"{speaker} {float(speed)} 1.0-int8\n{text}".encode()).hexdigest()[:32]
        path = folder / f"{key}.wav"
        if not path.exists():
            if model is None and speaker == AMERICAN:
                model = _Piper(require("piper-joe", settings, progress), speed)
            elif model is None:
                model = _Kokoro(require("kokoro", settings, progress), speaker, speed)
            if progress:
                progress(f"synthesising: {text}")
            _write_wav(path, model.say(text))
        utterances.append(Utterance(text, load_wav(path).samples, SAMPLE_RATE, source))
    return utterances


def check_speaker(name: str) -> None:
    """Checks the name of a voice.

    Raises:
        UsageError: There is no such voice.
    """
    known = (*SPEAKERS, AMERICAN)
    if name not in known:
        raise UsageError(f"there is no speaker {name!r}", f"one of {', '.join(known)}")


def load_wav(path: Path | str, channel: Channel | None = None) -> Utterance:
    """Reads a recording: WAV of any encoding, FLAC, OGG and what else libsndfile reads.

    Blocks: call it in a thread.

    Args:
        channel: Channel of a stereo recording with the caller's voice. None: two channels with the
            same audio are mixed, and if one of two is silent the other is used; the utterance's
            notice says so.

    Raises:
        AudioFormatError: It does not exist, cannot be read, is silent, or has more than two
            channels or two different ones.
        UsageError: There is no such channel.
    """
    import soundfile

    check_channel(channel)
    if not Path(path).is_file():
        raise AudioFormatError(f"{path} is not a file", "check the path")
    try:
        with soundfile.SoundFile(path) as file:
            rate, samples = file.samplerate, file.read(dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, TypeError):  # a headerless `.raw` is a TypeError
        raise AudioFormatError(f"{path} is not a readable audio file", CONVERT_HINT) from None
    try:
        mono, notice = to_mono(samples, rate, channel)
    except AudioFormatError as error:
        raise AudioFormatError(f"{path}: {error.observed}", error.hint) from None
    if is_silent(mono, rate):
        raise AudioFormatError(
            f"{path} is silent, or too quiet to be heard: its highest sample is {peak_dbfs(mono)}",
            "record it again, or raise its level: `ffmpeg -i IN -af loudnorm OUT.wav`",
        )
    return Utterance("", mono, rate, "file", notice)


class _Kokoro:
    """Kokoro-82M, loaded, with one of its voices."""

    def __init__(self, folder: Path, speaker: str, speed: float) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(folder / "kokoro.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_bytes())["vocab"]
        with np.load(folder / "voices_ja.npz") as voices:
            # Shape (510, 1, 256): one style for every length of input in tokens.
            self._styles: npt.NDArray[np.float32] = voices[speaker]
        self._speed = speed

    def say(self, text: str) -> Pcm:
        """Returns samples, shape (n,), at :data:`SAMPLE_RATE`, with little silence around."""
        tokens = [self._ids[sign] for sign in phonemize(text) if sign in self._ids]
        if not 0 < len(tokens) <= _KOKORO_MAX_TOKENS:
            raise AudioFormatError(
                f"{text!r} has {len(tokens)} phonemes, where 1 to {_KOKORO_MAX_TOKENS} can be said",
                "use English text, one sentence at a time",
            )
        feed: dict[str, npt.NDArray[Any]] = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self._styles[len(tokens) - 1],
            "speed": np.full(1, self._speed, np.float32),
        }
        audio = self._session.run(None, feed)[0].reshape(-1)
        pcm = (np.clip(audio, -1, 1) * 32767).astype(np.int16)
        return _trimmed(resample(pcm, _KOKORO_RATE, SAMPLE_RATE))


class _Piper:
    """Piper's voice, loaded."""

    def __init__(self, folder: Path, speed: float) -> None:
        from labvoice.speech.piper import Piper

        self._voice = Piper(folder, speed=speed)

    def say(self, text: str) -> Pcm:
        """Returns samples, shape (n,), at :data:`SAMPLE_RATE`, with little silence around."""
        spoken = list(self._voice.speak(text, cut_lead_in=True))
        if not spoken:
            raise AudioFormatError(f"{text!r} has no phonemes", "use English text")
        return _trimmed(resample(np.concatenate(spoken), self._voice.sample_rate, SAMPLE_RATE))


def _trimmed(samples: Pcm) -> Pcm:
    speech = find_speech(samples, SAMPLE_RATE)
    if speech is None:
        return samples
    edge = round(_EDGE_S * SAMPLE_RATE)
    return samples[max(0, speech.first - edge) : speech.last + 1 + edge]


def _write_wav(path: Path, samples: Pcm) -> None:
    """Writes a file atomically."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch, "made.wav")
        soundfile.write(made, samples, SAMPLE_RATE, subtype="PCM_16")
        made.rename(path)
