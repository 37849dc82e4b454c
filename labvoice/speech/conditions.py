"""How a caller sounds: noise and voices around it, a far microphone, a telephone line, echo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from labvoice.errors import UsageError
from labvoice.settings import Settings
from labvoice.speech.detection import find_speech, resample
from labvoice.speech.utterances import (
    DEFAULT_UTTERANCES,
    SAMPLE_RATE,
    SPEAKERS,
    Pcm,
    Utterance,
    check_speaker,
    load_wav,
    synthesize_all,
)
from labvoice.speech.weights import Progress

NOISES: Final = {
    "street": "city-ambience.ogg",
    "crowd": "crowded-room.ogg",
    "office": "office-ambience.ogg",
    "forest": "forest-ambience.ogg",
    "keyboard": "keyboard-typing.ogg",
}
"""Recordings that livekit-agents ships (`livekit/agents/resources`, with their licences in its
NOTICE); they are read from there."""

VOICES: Final = "voices"
"""The noise of three people who talk at once, synthesised."""
Line = Literal["telephone"]
Place = Literal["far"]

_LINE_RATE: Final = 8000
_LINE_BAND_HZ: Final = (300.0, 3400.0)
_MU: Final = 255.0
_FULL_SCALE: Final = 32767.0
_DECAY_S: Final = 0.5
"""Reverberation time of a living room or an office: until its sound is 60 dB lower."""
_DIRECT_TO_REST: Final = 1.0
"""Of the direct sound's energy to that of the reverberation, as some metres from a speaker."""
_SEED: Final = 20261
_PEOPLE: Final = 3
_SNR_DB, _ECHO_DB = (-20.0, 80.0), (0.0, 80.0)


@dataclass(frozen=True)
class Conditions:
    """How a caller sounds, and what is around it.

    Attributes:
        noise: One of :data:`NOISES`, :data:`VOICES`, or the path of a recording.
        snr_db: How many decibels the caller's speech is above the noise.
        line: `telephone`: 300 to 3400 Hz, in 8-bit samples of the mu-law.
        microphone: `far`: across a room that reverberates.
        echo_db: How many decibels the agent's voice that comes back through the caller's
            microphone is below what the caller hears; no echo where not given.
        speaker: The synthetic voice that says every sentence, one of
            :data:`labvoice.speech.utterances.SPEAKERS` (Japanese accents) or `joe` (American);
            the utterances' own voices where not given.

    Raises:
        UsageError: There is no such line, microphone or speaker, or a level makes no sense.
    """

    noise: str | None = None
    snr_db: float = 20.0
    line: Line | None = None
    microphone: Place | None = None
    echo_db: float | None = None
    speaker: str | None = None

    def __post_init__(self) -> None:
        if self.speaker is not None:
            check_speaker(self.speaker)
        for name, value, known in (
            ("line", self.line, get_args(Line)),
            ("microphone", self.microphone, get_args(Place)),
        ):
            if value is not None and value not in known:
                raise UsageError(f"there is no {name} {value!r}", f"the only one is {known[0]}")
        for name, level, (least, most) in (
            ("snr", self.snr_db, _SNR_DB),
            ("echo", self.echo_db, _ECHO_DB),
        ):
            if level is not None and not least <= level <= most:
                raise UsageError(
                    f"{name} of {level:g} dB", f"give a number from {least:g} to {most:g}"
                )

    @classmethod
    def of(cls, **given: str) -> Conditions:
        """Reads texts, as an option or a file has them.

        Args:
            given: By the options' names: noise, snr, line, microphone, echo, speaker.

        Raises:
            UsageError: One cannot be read.
        """
        read: dict[str, Any] = {}
        for name, text in given.items():
            if name not in ("snr", "echo"):
                read[name] = text
                continue
            try:
                read[f"{name}_db"] = float(text)
            except ValueError:
                raise UsageError(
                    f"--{name}: {text!r} is no number of decibels", "such as 15"
                ) from None
        return cls(**read)

    def __str__(self) -> str:
        words = [f"noise {self.noise} at {self.snr_db:g} dB"] if self.noise else []
        words += [f"{self.microphone} microphone"] if self.microphone else []
        words += [self.line] if self.line else []
        words += [f"echo at -{self.echo_db:g} dB"] if self.echo_db is not None else []
        words += [f"speaker {self.speaker}"] if self.speaker else []
        return ", ".join(words) or "quiet"

    def voiced(
        self, utterances: Sequence[Utterance], settings: Settings, progress: Progress | None = None
    ) -> list[Utterance]:
        """Returns utterances in the speaker's voice, as they are without one; blocks.

        Args:
            utterances: Their texts are what is said.

        Raises:
            UsageError: The words of one are not known.
            WeightsError: The voice cannot be obtained.
        """
        if self.speaker is None:
            return list(utterances)
        if not all(each.text for each in utterances):
            raise UsageError(
                "a speaker is named, and the words of a recording are not known",
                "leave the speaker out, or give texts",
            )
        texts = [each.text for each in utterances]
        return synthesize_all(texts, settings, progress, speaker=self.speaker)

    def sent(self, samples: Pcm) -> Pcm:
        """Returns speech as it leaves the caller; blocks for some 10 ms a second of it.

        Args:
            samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.
        """
        if self.microphone == "far":
            samples = far(samples)
        return telephone(samples) if self.line == "telephone" else samples

    def spoken(self, utterance: Utterance) -> Utterance:
        """Returns an utterance as it leaves the caller, as :meth:`sent` does."""
        if self.microphone is None and self.line is None:
            return utterance
        samples = self.sent(utterance.samples)
        return Utterance(utterance.text, samples, SAMPLE_RATE, utterance.source, utterance.notice)

    def around(
        self,
        speech: Utterance,
        settings: Settings,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Pcm:
        """Returns what is around the caller all the time; empty for silence.

        Blocks: call it in a thread.

        Args:
            speech: As it leaves the caller; sets the noise's level.
            folder: Where a recording is looked for first.

        Raises:
            UsageError: There is no such noise and no such file.
            AudioFormatError: The file cannot be read, or is silent.
            WeightsError: The voices could not be obtained.
        """
        if self.noise is None:
            return np.zeros(0, np.int16)
        people = self.noise == VOICES
        sound = _people(settings, progress) if people else noise(self.noise, folder)
        return at_snr(telephone(sound) if self.line == "telephone" else sound, speech, self.snr_db)


def noise(kind: str, folder: Path | None = None) -> Pcm:
    """Returns noise, shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.

    Blocks: call it in a thread.

    Args:
        kind: One of :data:`NOISES`, or the path of a recording of any rate.
        folder: Where a path is looked for first; then it is the working directory.

    Raises:
        UsageError: There is no such noise and no such file.
        AudioFormatError: The file cannot be read, or is silent.
    """
    if kind in NOISES:
        from livekit.agents import resources

        return load_wav(Path(str(resources.__path__[0])) / NOISES[kind], "mix").samples
    for path in ([] if folder is None else [folder / kind]) + [Path(kind)]:
        if path.is_file():
            return load_wav(path).samples
    raise UsageError(
        f"there is no noise {kind!r} and no such file",
        f"one of {', '.join(NOISES)}, {VOICES}, or the path of a recording",
    )


def at_snr(noise: Pcm, speech: Utterance, snr_db: float) -> Pcm:
    """Returns the noise at a level below that of the speech.

    Args:
        noise: Shape (n,).
        speech: Its level is the RMS from its first to its last voiced sample.
        snr_db: How many decibels the speech is above the noise.
    """
    found = find_speech(speech.samples, SAMPLE_RATE)
    voiced = speech.samples if found is None else speech.samples[found.first : found.last + 1]
    level, own = _rms(voiced), _rms(noise)
    if not own:
        return noise
    scaled = noise * (level / own * 10 ** (-snr_db / 20))
    return np.asarray(np.clip(np.round(scaled), -32768, 32767), np.int16)


def _rms(samples: Pcm) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64))))) if len(samples) else 0.0


def _people(settings: Settings, progress: Progress | None) -> Pcm:
    """People who talk at once, each in a voice of its own."""
    talks = [
        np.concatenate(
            [
                each.samples.astype(np.float64)
                for each in synthesize_all(
                    DEFAULT_UTTERANCES[number::_PEOPLE], settings, progress, speaker=speaker
                )
            ]
        )
        for number, speaker in enumerate(SPEAKERS[-_PEOPLE:])
    ]
    mixed = sum(np.resize(talk, max(map(len, talks))) for talk in talks) / _PEOPLE
    return np.asarray(mixed, np.int16)


def far(samples: Pcm) -> Pcm:
    """Returns speech as a microphone across a room hears it, at the same level.

    The room is noise that decays exponentially, as many reflections do. The reverberation after
    the last word is part of the result.

    Args:
        samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.
    """
    from scipy.signal import fftconvolve

    if not len(samples):
        return samples
    at_s = np.arange(round(_DECAY_S * SAMPLE_RATE)) / SAMPLE_RATE
    room = np.random.default_rng(_SEED).standard_normal(len(at_s)) * 10 ** (-3 * at_s / _DECAY_S)
    room *= np.sqrt(1 / _DIRECT_TO_REST / np.square(room).sum())
    room[0] = 1.0
    heard = np.asarray(fftconvolve(samples.astype(np.float64), room))
    peak = np.abs(heard).max()
    level = np.abs(samples.astype(np.int32)).max() / peak if peak else 1.0
    return np.asarray(np.round(heard * level), np.int16)


def telephone(samples: Pcm) -> Pcm:
    """Returns samples as a telephone line carries them: 300 to 3400 Hz, G.711's mu-law.

    Args:
        samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.

    Returns:
        The same number of samples at the same rate.
    """
    from scipy.signal import butter, sosfiltfilt

    if not len(samples):
        return samples
    narrow = resample(samples, SAMPLE_RATE, _LINE_RATE)
    band = butter(4, _LINE_BAND_HZ, "bandpass", fs=_LINE_RATE, output="sos")
    # Forwards and backwards: nothing moves, so the marks of the speech stay where they are.
    pad = min(len(narrow) - 1, _LINE_RATE // 10)
    filtered = np.asarray(sosfiltfilt(band, narrow.astype(np.float64), padlen=max(0, pad)))
    coded = _mu_law(np.clip(filtered / _FULL_SCALE, -1, 1))
    wide = resample(coded * _FULL_SCALE, _LINE_RATE, SAMPLE_RATE)
    result = np.zeros(len(samples), np.int16)
    count = min(len(samples), len(wide))
    result[:count] = wide[:count]
    return result


def _mu_law(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rounds samples, full scale 1.0, to the 256 levels of the mu-law."""
    pressed = np.sign(samples) * np.log1p(_MU * np.abs(samples)) / np.log1p(_MU)
    rounded = np.round(pressed * 127) / 127
    return np.asarray(np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(_MU)) / _MU)
