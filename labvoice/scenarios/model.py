"""The model of a scenario: steps and expectations; from YAML, or made in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.quantities import (
    BelowSeconds,
    BelowShare,
    IntoReply,
    Pattern,
    Seconds,
    Within,
    check_argument,
)

PAUSE_SIGN: Final = "…"
"""Stands in a `say` text for a pause of :data:`PAUSE_S`."""
PAUSE_S: Final = 0.8
HANG_UP: Final = "hang up"
SCHEMA_PATH: Final = Path(__file__).with_name("scenario.schema.json")
"""The JSON schema of a scenario file, for editors and reviews."""

_STRICT: Final = ConfigDict(extra="forbid", populate_by_name=True)


def _spaced(name: str) -> Any:
    """A field whose key in YAML has spaces; None if it is not given."""
    return Field(default=None, validation_alias=name.replace("_", " "))


@dataclass(config=_STRICT, frozen=True)
class Noise:
    """Noise around the caller, for the whole call.

    Attributes:
        kind: `street`, `crowd`, `office`, `forest`, `keyboard`, `voices` (three people who talk),
            or the path of a recording.
        snr_db: How many decibels the caller's speech is above it.
    """

    kind: str
    snr_db: Annotated[float, Field(ge=-20, le=80)] = 20.0


@dataclass(config=_STRICT, frozen=True)
class Voice:
    """How the caller sounds.

    Attributes:
        speaker: `kokoro/NAME`, one of the caller's synthetic voices, or `piper/joe`; the usual one
            if not given.
        noise: Noise around it.
        line: `telephone`: 300 to 3400 Hz, in 8-bit samples of the mu-law.
        microphone: `far`: across a room that reverberates.
        echo_db: How many decibels the agent's voice that comes back through its microphone is
            below what it hears; no echo if not given.
        speed: Of its speech; 1 is the speaker's own.
    """

    speaker: str | None = None
    noise: Noise | None = None
    line: Literal["telephone"] | None = None
    microphone: Literal["far"] | None = None
    echo_db: Annotated[float, Field(ge=0, le=80)] | None = None
    speed: Annotated[float, Field(ge=0.5, le=2)] = 1.0


@dataclass(config=_STRICT, frozen=True)
class Interrupt:
    """When the caller begins to speak over the agent.

    Attributes:
        after: How long after the agent began to speak, in seconds.
    """

    after: IntoReply


@dataclass(config=_STRICT, frozen=True)
class Say:
    """The caller says something.

    It waits for the end of the agent's reply before, unless it interrupts it.

    Attributes:
        say: The text; `…` is a pause of 0.8 s.
        interrupt: When it speaks over the agent; after the reply if not given.
    """

    say: Annotated[str, Field(min_length=1)]
    interrupt: Interrupt | None = None


@dataclass(config=_STRICT, frozen=True)
class Play:
    """The caller plays a recording or makes a sound.

    Attributes:
        play: Path of a recording; or `cough`, `laugh` or `mm-hm`, which are made from a signal.
        text: What is said in it; empty for a sound that asks for no answer.
        interrupt: As of :class:`Say`.
    """

    play: Annotated[str, Field(min_length=1)]
    text: str = ""
    interrupt: Interrupt | None = None


@dataclass(config=_STRICT, frozen=True)
class Silence:
    """The caller is silent.

    Attributes:
        silence: How long, in seconds, from the end of the agent's reply.
    """

    silence: Seconds


@dataclass(config=_STRICT, frozen=True)
class Persona:
    """A language model plays the caller, until it hangs up.

    Attributes:
        persona: Who it is and what it wants.
        turns: How often it speaks at most.
    """

    persona: Annotated[str, Field(min_length=1)]
    turns: Annotated[int, Field(ge=1, le=100)] = 10


@dataclass(config=_STRICT, frozen=True)
class Tool:
    """A tool that the agent must have called since the caller last spoke.

    Attributes:
        name: Its name.
        arguments: What it must have been given: a text is a regular expression that the whole
            argument matches, `*` is anything, other values are equal. Further arguments are free.
    """

    name: str
    arguments: Mapping[str, Annotated[Any, BeforeValidator(check_argument)]] = field(
        default_factory=dict
    )


@dataclass(config=_STRICT, frozen=True)
class Like:
    """Words that what was heard must be similar to.

    Attributes:
        like: The words.
        at_least: Similarity from 0 to 1: twice the words in common, in order, among all words of
            both.
    """

    like: Annotated[str, Field(min_length=1)]
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.8


def _kind_of_heard(value: Any) -> str:
    return "like" if isinstance(value, Mapping | Like) else "pattern"


Heard = Annotated[
    Annotated[Pattern, Tag("pattern")] | Annotated[Like, Tag("like")],
    Discriminator(_kind_of_heard),
]
"""What must be heard: a regular expression, or words to be similar to."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | Tool | ModelCall) else value


@dataclass(config=_STRICT, frozen=True)
class Expect:
    """What must hold of the agent's answer to what the caller did last.

    Attributes:
        greeting: Longest time from the click to the agent's greeting, in seconds.
        reply: Longest time from the caller's last word to the reply, in seconds.
        heard: What the agent must have said.
        not_heard: A regular expression that it must not have said.
        tool: Tools that it must have called.
        handoff: A regular expression that the new agent's id matches.
        yields: Longest time from the caller's interruption to the end of the agent's voice, in
            seconds; `never` if it must go on.
        word_error_rate: Bound of the word error rate of what the agent understood, from 0 to 1.
        leaves: Longest time until the agent has left the room, in seconds.
        judge: What a language model must find true of the conversation so far.
    """

    greeting: Within | None = None
    reply: Within | None = None
    heard: Heard | None = None
    not_heard: Pattern | None = _spaced("not_heard")
    tool: Annotated[
        list[Tool] | None, BeforeValidator(_listed, json_schema_input_type=list[Tool] | Tool)
    ] = None
    handoff: Pattern | None = None
    yields: Within | Literal["never"] | None = None
    word_error_rate: BelowShare | None = None
    leaves: Within | None = None
    judge: str | None = None


@dataclass(config=_STRICT, frozen=True)
class Latency:
    """Bounds of a latency over all turns of a call, in seconds.

    Attributes:
        p50: Of the median.
        p95: Of the 95th percentile; of fewer than 20 turns it is the longest one's.
        max: Of the longest.
    """

    p50: BelowSeconds | None = None
    p95: BelowSeconds | None = None
    max: BelowSeconds | None = None


@dataclass(config=_STRICT, frozen=True)
class ExpectCall:
    """What must hold of a whole call.

    Attributes:
        turns_split: How many turns may be cut in two by the agent; `none` in YAML is 0.
        voice_to_voice: Bounds of the time from the caller's last word to the reply.
        word_error_rate: Bound of the word error rate of what the agent understood.
        not_heard: A regular expression that the agent must never have said.
        final: `file.py::function`, which is called with the :class:`CallResult` and fails the
            call by returning False or by an assertion.
        judge: What a language model must find true of the conversation.
    """

    turns_split: Annotated[
        Annotated[int, Field(ge=0)] | None,
        BeforeValidator(
            lambda v: 0 if v == "none" else v, json_schema_input_type=int | Literal["none"]
        ),
    ] = _spaced("turns_split")
    voice_to_voice: Latency | None = None
    word_error_rate: BelowShare | None = None
    not_heard: Pattern | None = _spaced("not_heard")
    final: Annotated[str, Field(pattern=r"^.+\.py::[A-Za-z_]\w*$")] | None = None
    judge: str | None = None


@dataclass(config=_STRICT, frozen=True)
class ModelCall:
    """A tool that the scripted model calls.

    Attributes:
        name: Its name.
        arguments: What it is given.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(config=_STRICT, frozen=True)
class Rule:
    """What the scripted model answers.

    The first rule that matches is taken; one without `user` is for the agent that speaks first.

    Attributes:
        user: A regular expression that is searched for in what the user said last.
        prompt: A regular expression that is searched for in the agent's instructions.
        call: Tools that it calls, one after the other, before it speaks.
        say: What it says then; `{result}` stands for what the last tool returned.
    """

    user: Pattern | None = None
    prompt: Pattern | None = None
    call: Annotated[
        list[ModelCall],
        BeforeValidator(_listed, json_schema_input_type=list[ModelCall] | ModelCall),
    ] = field(default_factory=list)
    say: str = ""


ACTIONS: Final = ("say", "play", "silence", "persona", "expect")
_STEP_HINT: Final = "`say`, `play`, `silence`, `persona`, `expect` or `hang up`"


def _kind_of_step(value: Any) -> str | None:
    """Returns the kind of a step; None if it is none."""
    if isinstance(value, str):
        return HANG_UP if value.strip() == HANG_UP else None
    if isinstance(value, Mapping):
        there = [name for name in ACTIONS if name in value]
        return f"{there[0]} step" if there else None
    return f"{type(value).__name__.lower()} step"


class _Wrapped:
    """In YAML the expectations of a step stand under its key `expect`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._unwrap, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"expect": handler(schema)},
            "required": ["expect"],
            "additionalProperties": False,
        }

    @staticmethod
    def _unwrap(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for key in value:
            if key != "expect":
                raise PydanticCustomError(
                    "extra_forbidden", "`{key}` stands beside `expect`", {"key": key}
                )
        return value["expect"]


Step = Annotated[
    Annotated[Say, Tag("say step")]
    | Annotated[Play, Tag("play step")]
    | Annotated[Silence, Tag("silence step")]
    | Annotated[Persona, Tag("persona step")]
    | Annotated[Expect, _Wrapped(), Tag("expect step")]
    | Annotated[Literal["hang up"], Tag(HANG_UP)],
    Discriminator(
        _kind_of_step,
        custom_error_type="no_step",
        custom_error_message=f"it is no step: {_STEP_HINT}",
    ),
]


@dataclass(config=_STRICT, frozen=True)
class Scenario:
    """A call with its steps, and what must hold.

    Args:
        name: What it is called in results.
        steps: What the caller does, and what must hold after it; :class:`Say`, :class:`Play`,
            :class:`Silence`, :class:`Persona`, :class:`Expect` and `"hang up"`.
        description: For its readers.
        agent: AGENT, as the command line takes it; the command line's, if not given.
        voice: How the caller sounds.
        link: The link of the caller's media: a name such as `4g`, or such as `delay=80ms,loss=3%`.
        expect: What must hold of the whole call.
        model: The script of the model that answers the agent; the embedded or the configured
            model answers if not given.
        tags: For its readers.

    Raises:
        pydantic.ValidationError: A value is invalid.
        ScenarioError: A step cannot be reached, or an expectation can never hold.
    """

    name: Annotated[str, Field(min_length=1)]
    steps: Annotated[list[Step], Field(min_length=1)]
    description: str = ""
    agent: str | None = None
    voice: Voice = field(default_factory=Voice)
    link: str | None = None
    expect: ExpectCall = field(default_factory=ExpectCall)
    model: list[Rule] = field(default_factory=list)
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, words in _faults(self.steps):
            raise StepError(place, words)


class StepError(ScenarioError):
    """A step that is invalid at its place."""

    def __init__(self, step: int, words: str) -> None:
        self.step = step
        super().__init__(f"step {step + 1}: {words}")


def _faults(steps: Sequence[Any]) -> list[tuple[int, str]]:
    """Returns the steps that cannot be reached or cannot hold, with the reason."""
    said = interrupted = ended = False
    for number, step in enumerate(steps):
        if ended:
            return [(number, "this step cannot be reached: the caller has hung up before it")]
        if step == HANG_UP:
            ended = True
        elif isinstance(step, Say | Play):
            said, interrupted = True, step.interrupt is not None
        elif isinstance(step, Persona):
            said, interrupted = True, False
        elif isinstance(step, Expect):
            if not said and (step.reply is not None or step.word_error_rate is not None):
                return [(number, "there is no reply here: the caller has said nothing yet")]
            if said and step.greeting is not None:
                return [(number, "a greeting is expected before the caller speaks, not after it")]
            if step.yields is not None and not interrupted:
                words = "`yields` needs an interruption: the last `say` has no `interrupt`"
                return [(number, words)]
    return []


SCENARIO: Final[TypeAdapter[Scenario]] = TypeAdapter(Scenario)


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a scenario file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "labvoice scenario",
        **{key: value for key, value in SCENARIO.json_schema().items() if key != "title"},
    }


def schema_text() -> str:
    """Returns the text of :data:`SCHEMA_PATH`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
