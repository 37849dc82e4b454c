"""Probes of turn-taking: interruptions (barge-in), backchannels, coughs, asides and pauses.

Each says what it is: words that are synthesised, words that a person has read, or a sound
that is made from a signal, for no package at hand ships recorded coughs, laughs or hums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from labvoice.errors import UsageError
from labvoice.settings import Settings
from labvoice.speech.utterances import (
    DEFAULT_SPEAKER,
    SAMPLE_RATE,
    Utterance,
    human_utterances,
    synthesize_all,
)
from labvoice.speech.weights import Progress

Kind = Literal["interruption", "backchannel", "vocal_tic", "non_directed", "pause"]
"""What a probe asks of the agent, by the names of tau2-bench's τ-voice: to yield and answer, to go
on (three kinds), or, of a caller who pauses in mid-sentence, to wait."""
Sound = Literal["human", "synthesised"]

_Floats = npt.NDArray[np.float64]
_SEED: Final = 20261
_PEAK: Final = 0.35
"""Of the made sounds, full scale 1.0: about that of the synthesised words."""
_FAR_PEAK: Final = 0.15
"""Speech to somebody else comes from further away: 12 dB below the caller's own words."""
_FAR_HZ: Final = 3500.0
_ECHOES: Final = ((0.011, 0.5), (0.023, 0.35), (0.041, 0.2))
"""Delays in seconds and gains of a room's first reflections."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What the caller does once.

    Attributes:
        name: Of the probe, such as `cough`.
        kind: What it asks of the agent.
        utterance: What is sent.
        sound: Whether a person made it.
        source: Where it comes from.
        answer: Pattern that an answer to it matches, case aside; empty where none is expected.
        pause: Begin and end of the pause in mid-sentence, in seconds since the first sample.
    """

    name: str
    kind: Kind
    utterance: Utterance
    sound: Sound = "human"
    source: str = "given by the user"
    answer: str = ""
    pause: tuple[float, float] | None = None


class _Maker:
    """Makes the built-in probes; blocks, at first use for downloads."""

    def __init__(self, settings: Settings, progress: Progress | None, speaker: str) -> None:
        self._settings, self._progress, self._speaker = settings, progress, speaker

    def words(self, *texts: str) -> list[Utterance]:
        return synthesize_all(texts, self._settings, self._progress, speaker=self._speaker)

    def spoken(self, name: str, kind: Kind, texts: dict[str, str]) -> list[Probe]:
        """Synthesised words, with the pattern of an answer to each."""
        return [
            Probe(name, kind, words, "synthesised", words.source, texts[words.text])
            for words in self.words(*texts)
        ]

    def asides(self) -> list[Probe]:
        """Words to somebody else: synthesised ones, and a person who reads in the same room."""
        far = "from afar: 12 dB lower, dull, with reflections"
        texts = ("No, leave it on the table, please.", "Can you close the door over there?")
        made = [(words, f"{words.source}, {far}") for words in self.words(*texts)]
        reader = human_utterances(self._settings, self._progress)
        read = [(words, f"moonshine-voice's recording of Dickens, {far}") for words in reader[:2]]
        pairs = [pair for two in zip(made, read, strict=True) for pair in two]
        return [
            Probe(
                "aside",
                "non_directed",
                Utterance(words.text, from_afar(words.samples), SAMPLE_RATE, words.source),
                "human" if words.source == "human" else "synthesised",
                source,
            )
            for words, source in pairs
        ]

    def pauses(self) -> list[Probe]:
        """Sentences with a silence where a caller looks for the number, the street or the day."""
        sentences = (
            ("My number is five five five,", "zero one four two.", 0.9),
            ("I live at twenty-one,", "Baker Street, in London.", 1.0),
            ("Let me see,", "I think that it was on Tuesday.", 1.2),
        )
        return [self._pause(*sentence) for sentence in sentences]

    def _pause(self, first: str, second: str, silence_s: float) -> Probe:
        before, after = self.words(first, second)
        end = before.speech.last + 1
        silence = np.zeros(round(silence_s * SAMPLE_RATE), np.int16)
        kept = before.samples[:end], silence, after.samples[after.speech.first :]
        begin_s = end / SAMPLE_RATE
        text = f"{first.rstrip(',')} … {second}"
        return Probe(
            "pause",
            "pause",
            Utterance(text, np.concatenate(kept), SAMPLE_RATE, before.source),
            "synthesised",
            f"{before.source}, with a silence of {silence_s:g} s",
            pause=(begin_s, begin_s + silence_s),
        )

    def made(self, name: str, kind: Kind, sounds: dict[str, Callable[[], _Floats]]) -> list[Probe]:
        """Sounds made from a signal."""
        return [
            Probe(
                name,
                kind,
                Utterance(text, to_pcm(sound()), SAMPLE_RATE, "signal"),
                "synthesised",
                "signal",
            )
            for text, sound in sounds.items()
        ]


_PROBES: Final[dict[str, Callable[[_Maker], list[Probe]]]] = {
    "question": lambda make: make.spoken(
        "question",
        "interruption",
        {
            "Wait, what time is it now?": r"time|clock|\d",
            "Hold on, how much does it cost?": r"cost|price|much",
            "Excuse me, who are you?": r"who|name|assistant|\bam\b",
        },
    ),
    "correction": lambda make: make.spoken(
        "correction",
        "interruption",
        {
            "No, stop, I meant the other one.": r"other|meant|sorry",
            "No, that is wrong, I asked about Tuesday.": r"tuesday|wrong|sorry",
        },
    ),
    "backchannel": lambda make: [
        *make.made("backchannel", "backchannel", {"mm-hm": mm_hm}),
        *make.spoken("backchannel", "backchannel", {"Uh huh.": "", "Right.": "", "Yeah.": ""}),
    ],
    "cough": lambda make: make.made("cough", "vocal_tic", {"(cough)": cough}),
    "laugh": lambda make: make.made("laugh", "vocal_tic", {"(laugh)": laugh}),
    "aside": _Maker.asides,
    "pause": _Maker.pauses,
}
PROBES: Final = tuple(_PROBES)
"""Names of the built-in probes; several have variants, which take turns."""

Probes = str | Sequence["str | Probe"]
"""Names of built-in probes, as a list or with commas, and probes of the user's."""


def make_probes(
    given: Probes,
    settings: Settings,
    progress: Progress | None = None,
    speaker: str = DEFAULT_SPEAKER,
) -> list[list[Probe]]:
    """Returns the probes with the variants of each.

    Blocks, at first use for downloads: call it in a thread.

    Args:
        given: Which; all built-in ones when empty.
        speaker: Says the words that are synthesised; what a person has read, and sounds made from
            a signal, are nobody else's.

    Raises:
        UsageError: A name is unknown or given twice, or there is no such speaker.
        WeightsError: The caller's voice could not be obtained.
    """
    maker = _Maker(settings, progress, speaker)
    return [
        [each] if isinstance(each, Probe) else _PROBES[each](maker) for each in check_probes(given)
    ]


def check_probes(given: Probes) -> list[str | Probe]:
    """Returns the probes that are meant, by name or as given; all when none is.

    Raises:
        UsageError: A name is unknown or given twice.
    """
    wanted = given.split(",") if isinstance(given, str) else given
    chosen: dict[str, str | Probe] = {}
    for each in wanted:
        name = each.name if isinstance(each, Probe) else each.strip()
        if not name:
            continue
        if not isinstance(each, Probe) and name not in _PROBES:
            raise UsageError(f"there is no probe {name!r}", f"choose from {', '.join(PROBES)}")
        if name in chosen:
            raise UsageError(f"the probe {name} is named twice", "name each probe once")
        chosen[name] = each if isinstance(each, Probe) else name
    return list(chosen.values()) or list(PROBES)


# -- sounds ------------------------------------------------------------------------------


def mm_hm() -> _Floats:
    """A hum in two syllables, the second higher: shape (n,), at :data:`SAMPLE_RATE`."""
    nasal = ((270.0, 60.0), (1100.0, 200.0), (2200.0, 300.0))
    first = _voiced(_glide(0.19, 118, 112), nasal) * _swell(0.19)
    second = _voiced(_glide(0.26, 132, 148), nasal) * _swell(0.26)
    breath = 0.06 * _noise(0.05, 300.0, 2500.0) * _swell(0.05)
    return _scaled(np.concatenate([first, breath, second]))


def cough() -> _Floats:
    """Two bursts of breath, each with a voiced rest: shape (n,), at :data:`SAMPLE_RATE`."""
    throat = ((650.0, 150.0), (1400.0, 250.0), (2700.0, 350.0))
    bursts = []
    for seed, strength in enumerate((1.0, 0.7)):
        breath = _noise(0.3, 350.0, 5000.0, seed) * _decay(0.3, 0.04)
        rest = _voiced(_glide(0.3, 210, 130), throat) * _decay(0.3, 0.1)
        bursts += [strength * (0.7 * breath + rest), np.zeros(round(0.1 * SAMPLE_RATE))]
    return _scaled(np.concatenate(bursts[:-1]))


def laugh() -> _Floats:
    """Six syllables "ha" that fall in pitch and strength: shape (n,), at :data:`SAMPLE_RATE`."""
    vowel = ((760.0, 90.0), (1250.0, 110.0), (2500.0, 200.0))
    syllables = []
    for number in range(6):
        breath = 0.25 * _noise(0.07, 500.0, 4000.0, number) * _swell(0.07)
        pitch = 230 - 14 * number
        voice = _voiced(_glide(0.11, pitch, pitch - 25), vowel) * _swell(0.11)
        syllables += [(1 - 0.1 * number) * each for each in (breath, voice)]
    return _scaled(np.concatenate(syllables))


def from_afar(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Returns speech as from across a room: lower, dull, with reflections.

    Args:
        samples: Shape (n,), at :data:`SAMPLE_RATE`; the result is longer by the last reflection.
    """
    from scipy.signal import butter, sosfilt

    dull = butter(4, _FAR_HZ, fs=SAMPLE_RATE, output="sos")
    direct = _unit(sosfilt(dull, samples.astype(np.float64))) * _FAR_PEAK * 32767
    longest = round(max(delay_s for delay_s, _ in _ECHOES) * SAMPLE_RATE)
    heard = np.pad(direct, (0, longest))
    for delay_s, gain in _ECHOES:
        delay = round(delay_s * SAMPLE_RATE)
        heard[delay : delay + len(direct)] += gain * direct
    return np.asarray(np.clip(np.round(heard), -32768, 32767), np.int16)


def _time(length_s: float) -> _Floats:
    return np.arange(round(length_s * SAMPLE_RATE)) / SAMPLE_RATE


def _glide(length_s: float, from_hz: float, to_hz: float) -> _Floats:
    """A pitch that moves evenly, in Hz."""
    return np.linspace(from_hz, to_hz, round(length_s * SAMPLE_RATE))


def _swell(length_s: float) -> _Floats:
    """Rises and falls like a syllable."""
    return np.sin(np.pi * _time(length_s) / length_s) ** 0.6


def _decay(length_s: float, half_s: float) -> _Floats:
    """Begins within 5 ms, and then halves every so often."""
    time_s = _time(length_s)
    return np.minimum(time_s / 0.005, 1.0) * 0.5 ** (time_s / half_s)


def _noise(length_s: float, low_hz: float, high_hz: float, seed: int = 0) -> _Floats:
    from scipy.signal import butter, sosfilt

    white = np.random.default_rng(_SEED + seed).standard_normal(round(length_s * SAMPLE_RATE))
    band = butter(2, (low_hz, high_hz), "bandpass", fs=SAMPLE_RATE, output="sos")
    return _unit(sosfilt(band, white))


def _voiced(pitch_hz: _Floats, formants: Iterable[tuple[float, float]]) -> _Floats:
    """Pulses of the voice through resonances, each given by frequency and width in Hz."""
    from scipy.signal import lfilter

    phase = np.cumsum(pitch_hz) / SAMPLE_RATE
    sound: Any = np.diff(np.floor(phase), prepend=0.0)  # one pulse a period
    sound = lfilter([1.0], [1.0, -0.96], sound)  # the glottis: 12 dB an octave, less the lips' 6
    for frequency, width in formants:
        radius = np.exp(-np.pi * width / SAMPLE_RATE)
        turn = 2 * np.pi * frequency / SAMPLE_RATE
        sound = lfilter([1 - radius], [1.0, -2 * radius * np.cos(turn), radius**2], sound)
    return _unit(sound)


def _unit(sound: Any) -> _Floats:
    return np.asarray(sound / max(float(np.abs(sound).max(initial=0.0)), 1e-9), np.float64)


def _scaled(sound: _Floats) -> _Floats:
    return _PEAK * _unit(sound)


def to_pcm(sound: _Floats) -> npt.NDArray[np.int16]:
    """Returns a sound, full scale 1.0, as 16-bit samples."""
    return np.asarray(np.round(sound * 32767), np.int16)


SOUNDS: Final[dict[str, Callable[[], _Floats]]] = {"cough": cough, "laugh": laugh, "mm-hm": mm_hm}
"""The made sounds by name."""
