"""Turns with pauses, and what end-of-turn detectors make of each silence in them, without a call.

A detector is LiveKit's object for `turn_handling`: the agent and the benchmark run the same one.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import NOT_GIVEN, inference

from labvoice.errors import RunFileError
from labvoice.settings import Settings
from labvoice.speech.detection import VAD_ENTER, VAD_LEAVE, VoiceProbability, resample
from labvoice.speech.graded import (
    EITHER,
    SPOKEN_ASKED_AFTER_S,
    GradedDetector,
    Grades,
    SpokenDetector,
)
from labvoice.speech.utterances import (
    DEFAULT_UTTERANCES,
    SAMPLE_RATE,
    SPEAKERS,
    Utterance,
    human_utterances,
    synthesize_all,
)
from labvoice.speech.weights import Progress, require

if TYPE_CHECKING:
    from labvoice.speech.recognition import MoonshineSTT

DetectorName = Literal["v1-mini", "smart-turn"]
DEFAULT_THRESHOLDS: Final[Mapping[DetectorName, float]] = {"v1-mini": 0.36, "smart-turn": 0.5}
"""Probabilities from which the detectors mean an end: livekit-agents 1.8.9,
`inference/eot/languages.py`, English; smart-turn-livekit 0.4.0, `models.py`."""
ASKED_AFTER_S: Final = 0.2
"""Silence after which LiveKit asks its detector (1.8.9, `inference/eot/base.py`)."""
SHORTEST_S, LONGEST_S = 0.2, 5.0
"""Pauses of other lengths are no decisions (eot-bench's `--min-hold-span-duration` and its max)."""

_RATE: Final = 16000
_HEARD_S: Final = 8.0  # Smart Turn's window; v1-mini hears 1.2 s
_FRAME: Final = _RATE // 10
_STEPS: Final = 50
"""Steps of the event loop in which a detector's own tasks take the audio that they were given."""

# "…" is where the caller looks for a word, a number, a name. Written before any was synthesised or
# measured; none was removed later.
HESITATIONS: Final = (
    "I would like to book a table for, … let me think, four people.",
    "My number is five five five, … zero one four two.",
    "I live at twenty-one, … Baker Street, in London.",
    "Let me see, … I think that it was on Tuesday.",
    "Can you send it to, … to my office address?",
    "I am looking for a, … a small flat near the park.",
    "The order was placed on the, … the third of May.",
    "What I want to know is … whether the shop is open today.",
    "My name is, … Jonathan, … with a J.",
    "I have a question about my bill, … the one from last month.",
    "We need two rooms, … or maybe three, … for the weekend.",
    "It says on the screen that … the battery is low.",
    "Please cancel the appointment that I have on … Thursday morning.",
    "I tried to log in, … but it does not accept my password.",
    "The address is fourteen, … Mill Lane.",
    "Could you tell me how far it is from, … from the station to the museum?",
    "I bought a washing machine from you, … and it does not work.",
    "So, … I would like to change my flight.",
    "My date of birth is the twelfth of … October nineteen eighty.",
    "There are two problems, … the first one is the heating.",
    "I would prefer a seat by the window, … if that is possible.",
    "Well, … I do not really know what it is called.",
    "Can I pay with a card, … or do you only take cash?",
    "The train was supposed to leave at, … at half past nine.",
    "I am calling because … my parcel has not arrived.",
    "It is for my daughter, … she is six years old.",
    "Please remind me to buy milk, … bread, … and some apples.",
    "What is the difference between … the large one and the small one?",
    "My reference is A, … seven, … nine, … two.",
    "I will be there around, … let us say, … a quarter to five.",
)

# Pauses within turns of people who talk to an agent: shares that are longer, of those of 0.2 s and
# more. From eot-bench's published English results of silence alone: 55.6 % of pauses outlast 300
# ms, 21.7 % 600 ms, 10 % 1.0 s, 5 % 1.6 s (livekit/eot-bench, README).
_LONGER: Final = ((1.0, 0.2), (0.556, 0.3), (0.217, 0.6), (0.10, 1.0), (0.05, 1.6), (0.01, 2.5))
_SEED: Final = 20261
_DIP_FRAMES: Final = 5
_NEAR_FRAMES: Final = 40
_QUIET: Final = 10 ** (-35 / 10)
"""A silence takes the place of what is quieter than this beside the loudest part, in power."""


@dataclass(frozen=True, eq=False)
class SpokenTurn:
    """A turn of a caller, and where it is silent.

    Attributes:
        utterance: What is sent; its source says whether a person spoke.
        pauses: Begin and end of each silence in it, in seconds since its first sample.
        end_s: When its last word ends.
    """

    utterance: Utterance
    pauses: tuple[tuple[float, float], ...]
    end_s: float

    @property
    def pauses_s(self) -> list[float]:
        """Length of each silence."""
        return [round(end_s - begin_s, 3) for begin_s, end_s in self.pauses]


def spoken_turns(
    settings: Settings,
    progress: Progress | None = None,
    at_most: int | None = None,
    speaker: str | None = None,
) -> list[SpokenTurn]:
    """Returns the built-in turns: read by a person and synthesised, with pauses and without.

    Blocks, at first use for downloads and up to a minute of synthesis: call it in a thread.

    Args:
        at_most: How many are wanted, the first ones; all when not given.
        speaker: Who says all of them, what the person reads too; a person and all voices of
            Kokoro when not given.

    Raises:
        WeightsError: A recording or the caller's voice could not be obtained.
        UsageError: There is no such speaker.
    """
    read: tuple[list[Utterance], ...] = (
        human_utterances(settings, progress),
        human_utterances(settings, progress, "passages"),
    )
    say = functools.partial(synthesize_all, settings=settings, progress=progress)
    if speaker is not None:
        say = functools.partial(say, speaker=speaker)
        read = tuple(say([each.text for each in part][:at_most]) for part in read)
    short, long = read
    kinds = (
        short,
        _hesitating(HESITATIONS[:at_most], settings, progress, speaker),
        long,
        say(DEFAULT_UTTERANCES[:at_most]),
    )
    mixed = (each for group in itertools.zip_longest(*kinds) for each in group if each)
    return [_heard(utterance) for utterance in itertools.islice(mixed, at_most)]


def read_rows(path: Path) -> list[SpokenTurn]:
    """Reads rows of eot-bench's data set (`id`, `language`, `audio`, `silence_spans`).

    The last span of a row begins where its turn ends, each other one is a pause. Rows in other
    languages than English are left out.

    Args:
        path: A Parquet file, such as `data/en/validation-00000-of-00001.parquet` of
            livekit/eot-bench-data.

    Raises:
        RunFileError: It cannot be read, lacks a column, or has no row in English.
    """
    import pandas as pd

    try:
        rows = pd.read_parquet(path, columns=["id", "language", "audio", "silence_spans"])
        rows = rows[rows["language"].astype(str).str.startswith("en")]
        turns = [_row(row) for row in rows.to_dict("records") if len(row["silence_spans"])]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunFileError(
            f"{path} holds no rows of eot-bench: {str(error).splitlines()[0]}",
            "give a Parquet file with id, language, audio and silence_spans, as in the data set "
            "livekit/eot-bench-data",
        ) from None
    if not turns:
        raise RunFileError(f"{path} has no turn in English", "give the file of `data/en`")
    return turns


def load_turn_detector(
    name: DetectorName | Literal["either"], settings: Settings, threshold: float | None = None
) -> Any:
    """Returns what ends the turns of a call, for `turn_handling` (no public type of LiveKit's).

    Args:
        name: Which one. Smart Turn is asked with the words, and is graded, as is `either`: v1-mini
            beside Smart Turn; see :mod:`labvoice.speech.graded`.
        threshold: Probability below which a turn goes on; the first detector's own when not given.

    Raises:
        WeightsError: The weights of Smart Turn could not be obtained.
    """
    if name == "v1-mini":
        return load_detector(name, settings, threshold)
    smart_turn = load_detector("smart-turn", settings)
    longest_s = settings.max_endpointing_delay_s
    if threshold is None:
        threshold = DEFAULT_THRESHOLDS["v1-mini" if name == "either" else name]
    if name == "smart-turn":
        at_once = settings.preflight == "speech"
        return SpokenDetector(smart_turn.stream(), threshold, at_once=at_once, longest_s=longest_s)
    grades = Grades(max(EITHER.sure, threshold), min(EITHER.unsure_after_s, longest_s))
    members = (load_detector("v1-mini", settings), smart_turn)
    return GradedDetector(members, threshold, grades, ASKED_AFTER_S)


def load_detector(name: DetectorName, settings: Settings, threshold: float | None = None) -> Any:
    """Returns one detector of the end of a turn, as its package has it.

    Args:
        name: Which one. Smart Turn takes its weights from pipecat-ai's wheel.
        threshold: Probability below which a turn goes on; the detector's own when not given.

    Raises:
        WeightsError: The weights of Smart Turn could not be obtained.
    """
    if name == "v1-mini":
        return inference.TurnDetector(
            version="v1-mini",
            unlikely_threshold=NOT_GIVEN if threshold is None else threshold,
        )
    return _smart_turn(require("smart-turn", settings) / "smart-turn.onnx", threshold)


@functools.cache
def _smart_turn(path: Path, threshold: float | None) -> Any:
    from smart_turn_livekit import SmartTurnDetector

    return SmartTurnDetector(model_path=path, threshold=threshold, languages=("en",))


async def scores(
    detector: Any, turn: SpokenTurn, asked_after_s: float = ASKED_AFTER_S
) -> list[float]:
    """Asks a detector at each pause of a turn, and at its end, as LiveKit's session does.

    Args:
        asked_after_s: Silence after which it is asked, in seconds.

    Returns:
        The probability that the turn has ended, so far into each silence.
    """
    return [await _score(detector, heard) for heard in _heard_by(turn, asked_after_s)]


async def spoken_words(recogniser: MoonshineSTT, turn: SpokenTurn) -> list[str]:
    """Returns what is recognised of a turn at each of its pauses, and at its end."""
    return [await recogniser.transcribe(heard) for heard in _heard_by(turn, SPOKEN_ASKED_AFTER_S)]


def _heard_by(turn: SpokenTurn, after_s: float) -> list[npt.NDArray[np.int16]]:
    """The turn's samples at 16 kHz until so far into each silence."""
    samples = resample(turn.utterance.samples, SAMPLE_RATE, _RATE)
    samples = np.pad(samples, (0, _RATE))
    begins = (*(begin_s for begin_s, _ in turn.pauses), turn.end_s)
    return [samples[: round((begin_s + after_s) * _RATE)] for begin_s in begins]


async def _score(detector: Any, heard: npt.NDArray[np.int16]) -> float:
    stream = detector.stream()
    try:
        heard = heard[-round(_HEARD_S * _RATE) :]
        for begin in range(0, len(heard), _FRAME):
            piece = heard[begin : begin + _FRAME]
            stream.push_audio(rtc.AudioFrame(piece.tobytes(), _RATE, 1, len(piece)))
        for _ in range(_STEPS + len(heard) // _FRAME):
            await asyncio.sleep(0)
        event = await stream.predict()
        return float(event.end_of_turn_probability)
    finally:
        await stream.aclose()


def find_pauses(
    samples: npt.NDArray[np.int16], first: int, last: int
) -> tuple[tuple[float, float], ...]:
    """Returns the silences within speech, as LiveKit's voice detector hears them.

    Args:
        samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.
        first: Index of the first voiced sample.
        last: Index of the last voiced sample.

    Returns:
        Begin and end of each of at least :data:`SHORTEST_S`, in seconds.
    """
    detector = VoiceProbability(SAMPLE_RATE)
    try:
        voices = detector(samples)
    finally:
        detector.close()
    pauses, begin_s = [], None
    for number, voice in enumerate(voices):
        at_s = number * detector.window_s
        if begin_s is None and voice < VAD_LEAVE:
            begin_s = at_s
        elif begin_s is not None and voice >= VAD_ENTER:
            inside = first / SAMPLE_RATE < begin_s and at_s < last / SAMPLE_RATE
            if inside and SHORTEST_S <= at_s - begin_s <= LONGEST_S:
                pauses.append((begin_s, at_s))
            begin_s = None
    return tuple(pauses)


def pause_lengths(count: int) -> list[float]:
    """Returns lengths of pauses, in seconds, distributed as in eot-bench's English turns."""
    longer, lengths = (np.array(column) for column in zip(*_LONGER, strict=True))
    drawn = np.random.default_rng(_SEED).permutation((np.arange(count) + 0.5) / count)
    log = np.interp(np.log(drawn), np.log(longer)[::-1], np.log(lengths)[::-1])
    return [float(length_s) for length_s in np.round(np.exp(log), 3)]


def _heard(utterance: Utterance) -> SpokenTurn:
    """A turn whose silences the voice detector finds."""
    speech = utterance.speech
    pauses = find_pauses(utterance.samples, speech.first, speech.last)
    return SpokenTurn(utterance, pauses, (speech.last + 1) / SAMPLE_RATE)


def _hesitating(
    texts: Sequence[str], settings: Settings, progress: Progress | None, speaker: str | None
) -> list[Utterance]:
    """Synthesised sentences with silences where a caller hesitates; the voices take turns.

    Each is synthesised whole, so that its melody goes on over the silences.

    Args:
        texts: The first of :data:`HESITATIONS`.
        speaker: Says all of them; all voices of Kokoro when not given.
    """
    lengths = iter(pause_lengths(sum(text.count("…") for text in HESITATIONS)))
    parts_of = [[part.strip() for part in text.split("…")] for text in texts]
    whole = [
        " ".join(part if part.endswith((",", ".", "?")) else f"{part}," for part in parts)
        for parts in parts_of
    ]
    speakers = SPEAKERS if speaker is None else (speaker,)
    # All sentences of a voice at once: each call loads the voice's model.
    of_speaker = [
        iter(synthesize_all(whole[place :: len(speakers)], settings, progress, speaker=voice))
        for place, voice in enumerate(speakers)
    ]
    made = []
    for number, (text, parts) in enumerate(zip(texts, parts_of, strict=True)):
        spoken = next(of_speaker[number % len(speakers)])
        ends = np.cumsum([len(part) for part in parts[:-1]]) / sum(map(len, parts))
        silences = [(float(end), next(lengths)) for end in ends]
        samples = with_silences(spoken.samples, silences)
        made.append(Utterance(text, samples, SAMPLE_RATE, spoken.source))
    return made


def with_silences(
    samples: npt.NDArray[np.int16], silences: Sequence[tuple[float, float]]
) -> npt.NDArray[np.int16]:
    """Puts silences into speech, each into the quietest place near where it is wanted.

    Args:
        samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.
        silences: Where, as a share of the speech's length, and how long, in seconds.
    """
    frame = SAMPLE_RATE // 100
    levels = np.square(samples[: len(samples) // frame * frame] / 32768).reshape(-1, frame)
    smooth = np.convolve(levels.mean(axis=1), np.ones(_DIP_FRAMES) / _DIP_FRAMES, "same")
    pieces, done = [], 0
    for share, length_s in silences:
        middle = round(share * len(smooth))
        low = min(max(done + 1, middle - _NEAR_FRAMES), len(smooth) - 1)
        near = smooth[low : max(low + 1, middle + _NEAR_FRAMES)]
        quiet = low + int(near.argmin())
        begin = end = quiet
        while begin > low and smooth[begin - 1] < _QUIET * smooth.max():
            begin -= 1
        while end + 1 < len(smooth) and smooth[end + 1] < _QUIET * smooth.max():
            end += 1
        silence = np.zeros(round(length_s * SAMPLE_RATE), np.int16)
        pieces += [samples[done * frame : begin * frame], silence]
        done = end
    return np.concatenate([*pieces, samples[done * frame :]])


def _row(row: Mapping[Any, Any]) -> SpokenTurn:
    """A turn of eot-bench; its audio is encoded, or an array with its rate."""
    import soundfile

    audio = row["audio"]
    if audio.get("bytes") is not None:
        samples, rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")
    else:
        samples, rate = np.asarray(audio["array"], np.float32), int(audio["sampling_rate"])
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    spans: Sequence[tuple[float, float]] = [
        (float(span["start"]), float(span["end"])) for span in row["silence_spans"]
    ]
    pauses = tuple(span for span in spans[:-1] if SHORTEST_S <= span[1] - span[0] <= LONGEST_S)
    utterance = Utterance("", samples, int(rate), "eot-bench")
    return SpokenTurn(utterance, pauses, spans[-1][0])
