"""The lines of a run file: one JSON object each, checked against the vocabulary both ways."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter
from pydantic.functional_validators import AfterValidator

from labvoice.protocol import vocabulary as stages
from labvoice.protocol.vocabulary import Clock

FORMAT: Final = 1
"""Version of the run file's format; a reader refuses any other."""

FRAME_COLUMNS: Final = (
    "run_id",
    "trial",
    "room",
    "turn",
    "stage",
    "start_s",
    "duration_s",
    "outcome",
    "arm",
    "warmup",
    "plausible",
    "upset",
    "unit",
    "round",
    "said",
    "ready_by",
)
"""Columns of the frame before those of the configuration."""

MARKS: Final = frozenset(
    stages.CALLER_CONNECTION_MARKS
    + stages.WORKER_CONNECTION_MARKS
    + stages.FAILOVER_MARKS
    + stages.TURN_MARKS
    + stages.INTERRUPTION_MARKS
    + stages.WIRE_MARKS
)
DERIVED_STAGES: Final = frozenset(
    [
        stage.name
        for stage in stages.CONNECTION_STAGES
        + stages.FAILOVER_STAGES
        + stages.TURN_STAGES
        + stages.INTERRUPTION_STAGES
        + stages.WIRE_STAGES
    ]
    + [stages.TRANSPORT, *stages.TRANSPORT_PARTS]
) - {stages.JITTER_BUFFER}
"""Stages that are computed from marks and therefore never written."""


def _mark(name: str) -> str:
    if name not in MARKS:
        raise ValueError(f"unknown mark {name!r}")
    return name


def _outcome(name: str) -> str:
    if name not in stages.OUTCOMES:
        raise ValueError(f"unknown outcome {name!r}; one of {', '.join(stages.OUTCOMES)}")
    return name


def _stage(name: str) -> str:
    if name in DERIVED_STAGES:
        raise ValueError(f"stage {name!r} is computed from marks and cannot be written")
    if not name.isidentifier():
        raise ValueError(f"stage {name!r} is not a name")
    return name


def _columns(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    taken = {column for columns in arms.values() for column in columns} & set(FRAME_COLUMNS)
    if taken:
        raise ValueError(f"configuration columns {sorted(taken)} are columns of the frame already")
    return arms


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Scalar = str | int | float | bool | None


class RunLine(_Line):
    """The first line: what was run, how, and on what."""

    type: Literal["run"] = "run"
    format: Literal[1] = 1
    run_id: str
    kind: str
    started_at: str
    started_s: FiniteFloat | None = None
    """The same instant on the clock of the marks; None where it is not known."""
    loop: Literal["closed", "open"]
    config: dict[str, JsonValue]
    arms: Annotated[dict[str, dict[str, Scalar]], Field(min_length=1), AfterValidator(_columns)]
    host: dict[str, JsonValue]


class TrialLine(_Line):
    """Start of a trial."""

    type: Literal["trial"] = "trial"
    trial: int
    room: str
    arm: str
    warmup: bool = False
    unit: str
    """Unit of resampling: the trial itself, or the event that it is part of."""
    round: int | None = None
    """Round: what every arm did at one time, with the same words."""


class MarkLine(_Line):
    """An instant, in seconds on the caller's monotonic clock."""

    type: Literal["mark"] = "mark"
    trial: int
    turn: int | None = None
    mark: Annotated[str, AfterValidator(_mark)]
    t_s: FiniteFloat
    clock: Clock = "caller"
    uncertainty_s: FiniteFloat = 0.0


class StageLine(_Line):
    """A duration measured elsewhere, such as LiveKit's own figures of a turn."""

    type: Literal["stage"] = "stage"
    trial: int
    turn: int | None = None
    stage: Annotated[str, AfterValidator(_stage)]
    duration_s: FiniteFloat
    start_s: FiniteFloat | None = None
    source: str = "agent"


class NoteLine(_Line):
    """Facts other than times: texts, identities, the clock offset."""

    type: Literal["note"] = "note"
    trial: int
    turn: int | None = None
    facts: dict[str, JsonValue]


class OutcomeLine(_Line):
    """How a trial's connection (no turn) or one of its turns ended."""

    type: Literal["outcome"] = "outcome"
    trial: int
    turn: int | None = None
    outcome: Annotated[str, AfterValidator(_outcome)]
    detail: str = ""


class EndLine(_Line):
    """End of the run; missing if the run crashed."""

    type: Literal["end"] = "end"


Line = RunLine | TrialLine | MarkLine | StageLine | NoteLine | OutcomeLine | EndLine
LINE: Final[TypeAdapter[Line]] = TypeAdapter(Annotated[Line, Field(discriminator="type")])
"""Reads any line of a run file."""
