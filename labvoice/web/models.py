"""Bodies of requests and responses; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    computed_field,
)

from labvoice.dispatch import STRATEGIES, StrategyName
from labvoice.protocol.metadata import check_name
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CALLER_CONNECTION_MARKS,
    OUTCOMES,
    TURN_MARKS,
    WORKER_CONNECTION_MARKS,
)

MAX_TURNS: Final = 500
"""Maximum number of turns in a report."""
_MAX_METADATA: Final = 8192
"""Maximum length of a participant's metadata: it is part of the token, in a request's header."""

_NAME_WORDS: Final = "Letters, digits, inner spaces and . _ : @ + -, beginning with a letter."
RoomName = Annotated[
    str, Field(min_length=1, max_length=128, description=_NAME_WORDS), AfterValidator(check_name)
]
AgentName = Annotated[
    str,
    Field(min_length=1, max_length=128, description=_NAME_WORDS),
    AfterValidator(lambda name: check_name(name, "agent name")),
]


def _check_identity(name: str) -> str:
    if name.startswith("agent-"):
        raise ValueError("must not begin with 'agent-', which agents are known by")
    return check_name(name, "participant identity")


Identity = Annotated[
    str,
    Field(min_length=1, max_length=128, description=f"{_NAME_WORDS} Not `agent-…`."),
    AfterValidator(_check_identity),
]


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("must be printable")
    return name


LettaAgentId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_check_printable)]
DispatchId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Permission = Literal["dispatch", "token", "read", "admin"]
if TYPE_CHECKING:
    Outcome = str
else:
    Outcome = Literal[OUTCOMES]


def _known(names: tuple[str, ...]) -> AfterValidator:
    def check(values: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"unknown: {', '.join(map(ascii, unknown[:3]))}")
        return values

    return AfterValidator(check)


_Seconds = Annotated[FiniteFloat, Field(ge=-3600, le=86400)]
CONNECTION_MARKS: Final = (*CALLER_CONNECTION_MARKS, *WORKER_CONNECTION_MARKS)
_ConnectionMarks = Annotated[dict[str, _Seconds], _known(CONNECTION_MARKS)]
_TurnMarks = Annotated[dict[str, _Seconds], _known(TURN_MARKS)]
_TurnMetrics = Annotated[dict[str, _Seconds], _known(AGENT_TURN_STAGES)]


class Body(BaseModel):
    """A request's body; unknown keys are refused, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")


class ErrorFacts(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs, such as `no_worker`.")
    message: str = Field(description="What was observed, one sentence.")
    hint: str = Field(description="The next thing to do; may be empty.")


class ErrorAnswer(BaseModel):
    """Body of every error."""

    error: ErrorFacts


class DispatchRequest(Body):
    """Request for an agent in a room."""

    room: RoomName
    agent_name: AgentName | None = Field(None, description="Default: the lab's agent.")
    letta_agent_id: LettaAgentId | None = Field(
        None, description="Id or name of the Letta agent whose memory the call uses."
    )
    timeout_s: float = Field(10.0, ge=1, le=30, description="How long to wait for the agent.")


class Clock(BaseModel):
    """When the service received the request and answered, on the clock of the marks."""

    received_s: float = 0.0
    answered_s: float


class DispatchAnswer(BaseModel):
    """Result of a dispatch: exactly one live agent of that name in the room, or the reason."""

    success: bool
    room: str
    message: str
    dispatch_id: str = Field(description="Empty where none was made.")
    room_existed: bool
    agent_name: str
    outcome: Outcome
    marks: dict[str, float] = Field(description="Seconds since the request reached the service.")
    clock: Clock
    job_id: str = ""
    worker_id: str = ""
    agent_identity: str = ""
    attempts: int = Field(0, description="Dispatches made; 0 when the agent was there already.")


class DispatchFailure(DispatchAnswer):
    """A failed dispatch: the same fields, and the error."""

    error: ErrorFacts


class AgentOfToken(Body):
    """An agent that the server dispatches as the token's bearer makes the room."""

    agent_name: AgentName
    metadata: str = Field("", max_length=_MAX_METADATA, description="Given to the agent unchanged.")


class RoomConfig(Body):
    """The supported fields of LiveKit's `RoomConfiguration`."""

    agents: list[AgentOfToken] = Field([], max_length=8)


class TokenRequest(Body):
    """Request for a token; missing names are generated.

    LiveKit's standard names (`room_name`, `participant_identity`, …), which its front-end SDKs
    send, are taken as well.
    """

    room: RoomName | None = Field(None, validation_alias=AliasChoices("room", "room_name"))
    identity: Identity | None = Field(
        None, validation_alias=AliasChoices("identity", "participant_identity")
    )
    participant_name: str | None = Field(None, max_length=128)
    participant_metadata: str | None = Field(None, max_length=_MAX_METADATA)
    participant_attributes: dict[str, Annotated[str, Field(max_length=1024)]] | None = Field(
        None, max_length=32
    )
    room_config: RoomConfig | None = Field(
        None, description="Agents named here need the permission `dispatch` too."
    )
    letta_agent_id: LettaAgentId | None = None
    strategy: StrategyName | None = Field(
        None,
        description="`token` lets the server dispatch the agent as the token's bearer makes the "
        "room, and needs the permission `dispatch` too; others leave the agent out.",
    )

    @property
    def agents(self) -> list[AgentOfToken]:
        """Agents named in the request."""
        return self.room_config.agents if self.room_config is not None else []

    @property
    def dispatches(self) -> bool:
        """Whether the token dispatches an agent."""
        by_strategy = self.strategy is not None and STRATEGIES[self.strategy].in_token
        return by_strategy or bool(self.agents)


class TokenAnswer(BaseModel):
    """A LiveKit access token for one room and one identity, also under LiveKit's own names."""

    token: str
    url: str = Field(description="Address of the LiveKit server, `ws://…` or `wss://…`.")
    room: str
    identity: str
    expires_in_s: int

    @computed_field(description="As `url`: LiveKit's standard name.")  # type: ignore[prop-decorator]
    @property
    def server_url(self) -> str:
        """As `url`."""
        return self.url

    @computed_field(description="As `token`: LiveKit's standard name.")  # type: ignore[prop-decorator]
    @property
    def participant_token(self) -> str:
        """As `token`."""
        return self.token


class StrategyFacts(BaseModel):
    """One way to get an agent into a call, for a page to offer."""

    name: StrategyName
    title: str
    when: Literal["after", "during", "token", "ahead"]
    lifetime_s: float = Field(description="How long an agent dispatched ahead waits.")


class LabAnswer(BaseModel):
    """Settings of the lab, and the names that a call's report may have."""

    agent_name: str = Field(description="Dispatched when none is asked for.")
    livekit_url: str
    strategies: list[StrategyFacts]
    marks: list[str] = Field(description="Connection marks.")
    turn_marks: list[str]
    turn_metrics: list[str]
    outcomes: list[str]


class LettaAgent(BaseModel):
    """A Letta agent whose memory a call may use."""

    id: str
    name: str
    model: str | None = None


class AgentsAnswer(BaseModel):
    """All Letta agents."""

    agents: list[LettaAgent]
    letta: bool = Field(True, description="Whether the lab has a Letta server, up or on its way.")
    reason: str = Field("", description="Why the list is empty, when Letta does not answer.")


class RoomParticipant(BaseModel):
    """A participant of a room."""

    identity: str
    kind: str = Field(description="`standard`, `agent`, ….")
    state: str = Field(description="Of an agent: `initializing`, `listening`, `thinking`, ….")
    dispatch_id: str


class RoomDispatch(BaseModel):
    """A dispatch that the server knows for a room."""

    id: str
    agent_name: str


class RoomFacts(BaseModel):
    """A room with its participants and dispatches."""

    name: str
    created_at_s: float = Field(description="Seconds since 1970.")
    participants: list[RoomParticipant]
    dispatches: list[RoomDispatch]


class RoomsAnswer(BaseModel):
    """All rooms of the server."""

    rooms: list[RoomFacts]


class WorkerFacts(BaseModel):
    """A worker and how busy it is."""

    worker_id: str
    agent_name: str
    active_jobs: int
    load: float = Field(description="0 to 1.")
    load_threshold: float = Field(description="Load at which it takes no more jobs.")


class WorkersAnswer(BaseModel):
    """The workers that answer."""

    livekit_url: str = Field(description="The LiveKit server that they serve.")
    workers: list[WorkerFacts]


class CleanAnswer(BaseModel):
    """What was removed from a room; humans are never removed."""

    room: str
    agents_removed: list[str]
    dispatches_deleted: list[str]
    room_deleted: bool


class DeletedAnswer(BaseModel):
    """A dispatch that was deleted, and so its agent."""

    dispatch_id: str
    room: str


class CallTurn(Body):
    """One turn as the page measured it."""

    number: int = Field(ge=0, lt=MAX_TURNS)
    marks: _TurnMarks = Field({}, description="Seconds since the call's click.")
    metrics: _TurnMetrics = Field({}, description="LiveKit's own figures, in seconds.")
    outcome: Outcome = "ok"


class CallReport(Body):
    """Measurements of a page's call so far, without any speech or text."""

    room: RoomName
    strategy: StrategyName | None = None
    dispatch_id: DispatchId | None = None
    outcome: Outcome = "ok"
    sent_s: _Seconds | None = Field(
        None, description="When this report was sent, in seconds since `click`; dates its spans."
    )
    marks: _ConnectionMarks = Field({}, description="Seconds since `click`, which is 0.")
    turns: list[CallTurn] = Field([], max_length=MAX_TURNS)


class CallAnswer(CallReport):
    """A call, from all its reports."""

    id: str
    stages: dict[str, float] = Field(description="Headline stages of the connection, in seconds.")


class WebhookAnswer(BaseModel):
    """A webhook was verified."""

    event: str
    seen_before: bool


class SessionRequest(Body):
    """A key to exchange for a cookie."""

    key: str = Field(min_length=1, max_length=512)


class SessionAnswer(BaseModel):
    """Owner of the key, with its permissions."""

    name: str
    permissions: list[Permission]
    expires_in_s: int


class Check(BaseModel):
    """Result of one check."""

    name: str
    ok: bool
    message: str
    hint: str = ""
    required: bool = Field(True, description="Whether no call can be made without it.")


class ReadyAnswer(BaseModel):
    """Whether a call can be made now, by dependency."""

    ready: bool
    checks: list[Check]


class HealthAnswer(BaseModel):
    """The service is alive."""

    status: Literal["ok"] = "ok"
