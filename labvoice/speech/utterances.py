"""What the simulated caller says: recorded, synthesised or a file of the user's own."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from labvoice.errors import AudioFormatError
from labvoice.settings import Settings
from labvoice.speech.phonemes import phonemize
from labvoice.speech.weights import Progress, require

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE: Final = 48000
"""Of every utterance, in Hz: what WebRTC sends, so that nothing is resampled on the way."""

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
"""Sentences that a caller might say to an assistant, 2 to 3 s each.

Written down before any of them was heard, recognised or measured; none was taken out after. So
the rate at which the turn detector misses their ends, and recognition their words, is a result.
"""

# Dickens, "A Tale of Two Cities" (1859, public domain): every part of at least 2 s between pauses
# of at least 0.3 s in the recording of it in the package moonshine-voice, as start and end in
# seconds. None is left out for how well it is understood.
_RECORDED: Final = (
    (1.17, 4.58, "It was the best of times, it was the worst of times."),
    (10.74, 12.81, "It was the epoch of incredulity."),
    (17.54, 20.49, "It was the spring of hope, it was the winter of despair."),
    (21.22, 24.03, "We had everything before us, we had nothing before us."),
    (29.90, 32.29, "The period was so far like the present period."),
    (32.76, 36.60, "That some of its noisiest authorities insisted on its being received."),
    (36.92, 41.66, "For good or for evil, in the superlative degree of comparison only."),
)

_KOKORO_RATE = 24000
# A Japanese speaker, as are all five voices that come with the model: the one that the embedded
# recogniser understood best in thirty sentences that are none of the default ones (word error
# rates of the five 4 to 7 %).
_KOKORO_VOICE = "jf_gongitsune"
_KOKORO_SPEED = 1.0
_KOKORO_MAX_TOKENS = 510
_FRAME_S = 0.005
_VOICED_RATIO = 0.03
_EDGE_S = 0.02
_RATES: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


@dataclass(frozen=True, eq=False)
class Utterance:
    """Something to say.

    Attributes:
        text: The words; empty where nobody knows them.
        samples: Shape (n,), mono.
        sample_rate: Samples per second.
        source: Where it comes from: `human`, `kokoro` or `file`.
    """

    text: str
    samples: Pcm
    sample_rate: int
    source: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


def speech_bounds(samples: Pcm, rate: int) -> tuple[int, int] | None:
    """Finds the first and the last voiced sample.

    A frame of 5 ms is voiced when its root mean square is at least 3 % (30 dB below) of the
    loudest frame's. The result is exact to that frame.

    Args:
        samples: Shape (n,), mono.
        rate: Samples per second.

    Returns:
        Their indices; None where there is no sound at all.
    """
    frame = max(1, round(rate * _FRAME_S))
    padded = np.pad(samples, (0, -len(samples) % frame)).astype(np.float64)
    levels = np.sqrt((padded.reshape(-1, frame) ** 2).mean(axis=1))
    if not levels.any():
        return None
    voiced = np.flatnonzero(levels >= _VOICED_RATIO * levels.max())
    return int(voiced[0]) * frame, min((int(voiced[-1]) + 1) * frame, len(samples)) - 1


def human_utterances(settings: Settings, progress: Progress | None = None) -> list[Utterance]:
    """Returns clauses read by a person, 2 to 5 s each, with hardly any silence around them.

    Blocks, at first use for the download: call it in a thread.

    Raises:
        WeightsError: The recording cannot be had.
    """
    whole = load_wav(require("human-speech", settings, progress) / "two_cities.wav").samples
    return [
        Utterance(text, _trimmed(_cut(whole, start_s, end_s)), SAMPLE_RATE, "human")
        for start_s, end_s, text in _RECORDED
    ]


def synthesize(text: str, settings: Settings, progress: Progress | None = None) -> Utterance:
    """Has Kokoro say a text; see :func:`synthesize_all`."""
    return synthesize_all([text], settings, progress)[0]


def synthesize_all(
    texts: Sequence[str], settings: Settings, progress: Progress | None = None
) -> list[Utterance]:
    """Has Kokoro say texts, each of at most some 30 words; what it once said is kept on disk.

    Blocks, for a fifth of the speech's length and at first use for the download: call it in a
    thread.

    Raises:
        WeightsError: The model cannot be had.
        AudioFormatError: A text has nothing that can be spoken.
    """
    folder = settings.cache_dir / "utterances"
    speaker: _Kokoro | None = None
    utterances = []
    for text in texts:
        key = hashlib.sha256(
            f"{_KOKORO_VOICE} {_KOKORO_SPEED} 1.0-int8\n{text}".encode()
        ).hexdigest()[:32]
        path = folder / f"{key}.wav"
        if not path.exists():
            if speaker is None:
                speaker = _Kokoro(require("kokoro", settings, progress))
            if progress:
                progress(f"synthesising: {text}")
            _write_wav(path, speaker.say(text))
        utterances.append(Utterance(text, load_wav(path).samples, SAMPLE_RATE, "kokoro"))
    return utterances


def load_wav(path: Path | str) -> Utterance:
    """Reads a PCM WAV file of one or two channels, as one at :data:`SAMPLE_RATE`.

    Raises:
        AudioFormatError: It is not there, is no PCM WAV file, or has an odd rate, more than two
            channels or no samples.
    """
    import soundfile

    def refuse(observed: str) -> AudioFormatError:
        return AudioFormatError(
            f"{path} {observed}",
            "convert it, for instance with `ffmpeg -i IN -ac 1 -ar 48000 -c:a pcm_s16le OUT.wav`",
        )

    if not Path(path).is_file():
        raise AudioFormatError(f"{path} is not a file", "check the path")
    try:
        with soundfile.SoundFile(path) as file:
            if file.format not in ("WAV", "WAVEX") or not file.subtype.startswith("PCM_"):
                raise refuse(f"holds {file.format} audio as {file.subtype}, not PCM WAV")
            if file.channels > 2:
                raise refuse(f"has {file.channels} channels, where 1 or 2 can be spoken")
            if file.samplerate not in _RATES:
                raise refuse(f"has {file.samplerate} samples per second, no common rate")
            rate, samples = file.samplerate, file.read(dtype="int16", always_2d=True)
    except soundfile.LibsndfileError:
        raise refuse("is not a WAV file that can be read") from None
    if not len(samples):
        raise refuse("holds no samples")
    mono = samples.mean(axis=1).round().astype(np.int16)
    return Utterance("", _resampled(mono, rate), SAMPLE_RATE, "file")


class _Kokoro:
    """Kokoro-82M, loaded."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(folder / "kokoro.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_text())["vocab"]
        with np.load(folder / "voices_ja.npz") as voices:
            # Shape (510, 1, 256): one style for every length of input in tokens.
            self._styles: npt.NDArray[np.float32] = voices[_KOKORO_VOICE]

    def say(self, text: str) -> Pcm:
        """Returns samples, shape (n,), at :data:`SAMPLE_RATE`, with hardly any silence around."""
        tokens = [self._ids[sign] for sign in phonemize(text) if sign in self._ids]
        if not 0 < len(tokens) <= _KOKORO_MAX_TOKENS:
            raise AudioFormatError(
                f"{text!r} has {len(tokens)} phonemes, where 1 to {_KOKORO_MAX_TOKENS} can be said",
                "say something in English, one sentence at a time",
            )
        feed: dict[str, npt.NDArray[Any]] = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self._styles[len(tokens) - 1],
            "speed": np.full(1, _KOKORO_SPEED, np.float32),
        }
        audio = self._session.run(None, feed)[0].reshape(-1)
        pcm = (np.clip(audio, -1, 1) * 32767).astype(np.int16)
        return _trimmed(_resampled(pcm, _KOKORO_RATE))


def _cut(samples: Pcm, start_s: float, end_s: float) -> Pcm:
    return samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]


def _trimmed(samples: Pcm) -> Pcm:
    bounds = speech_bounds(samples, SAMPLE_RATE)
    if bounds is None:
        return samples
    edge = round(_EDGE_S * SAMPLE_RATE)
    return samples[max(0, bounds[0] - edge) : bounds[1] + 1 + edge]


def _resampled(samples: Pcm, rate: int) -> Pcm:
    if rate == SAMPLE_RATE:
        return samples
    from scipy.signal import resample_poly

    # scipy reduces the fraction itself.
    made = resample_poly(samples.astype(np.float64), SAMPLE_RATE, rate)
    clipped: Pcm = np.clip(made.round(), -32768, 32767).astype(np.int16)
    return clipped


def _write_wav(path: Path, samples: Pcm) -> None:
    """Writes so that another process sees either nothing or all of it."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch, "made.wav")
        soundfile.write(made, samples, SAMPLE_RATE, subtype="PCM_16")
        made.rename(path)
