"""What the agent reports of a call.

Session events where the agent hosts them, otherwise its text streams, and from labvoice's own agent
the worker's marks and figures.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from livekit import rtc
from livekit.protocol.agent_pb import agent_session as session_pb

from labvoice.caller.agent import RoomAgent
from labvoice.caller.clock import ClockOffset, measure_offset
from labvoice.caller.marks import ConnectionMarks
from labvoice.caller.transcription import Transcription
from labvoice.caller.turns import Item, Turns
from labvoice.concurrency import poll
from labvoice.errors import AgentLostError, LabvoiceError, NoReplyError, StageTimeoutError
from labvoice.protocol.model_errors import refusal_hint
from labvoice.protocol.vocabulary import AGENT_TURN_STAGES, RPC_MARKS, WORKER_CONNECTION_MARKS

if TYPE_CHECKING:
    from livekit.agents.voice.remote_session import RemoteSession

SESSION_MODULE: Final = "livekit.agents.voice.remote_session"
"""Imported by the lab while its worker starts, because it takes 2.4 s."""
SESSION_EVENTS: Final = tuple(
    name
    for name in session_pb.AgentSessionEvent.DESCRIPTOR.fields_by_name
    if name not in ("created_at", "debug_message")
)
"""All events of `AgentSessionEvent` but the SDK's own debugging."""
_ROLES: Final = {session_pb.ChatRole.USER: "user", session_pb.ChatRole.ASSISTANT: "assistant"}
_POLL_S: Final = 0.1
_MODEL_HINT: Final = "`labvoice doctor` asks the model what a call asks it"


class AgentReports:
    """Collects what an agent reports over its room.

    Args:
        agent: The agent; gets the state that its session reports.
        marks: Get the worker's marks.
        turns: Get messages and figures.

    Attributes:
        session_events: As :attr:`labvoice.caller.call.Call.session_events`.
        hosts_session: Whether a session event has arrived.
        offset: Offset of the agent's clock; None before it was measured.
        worker: The agent's job: job_id, worker_id, pid.
        memory: As :attr:`labvoice.caller.call.Call.memory`.
        model_error: The last error of the agent's model; empty if there was none.
        last_agent: Identity of the agent at the last fetch; empty before.
    """

    def __init__(
        self,
        room: rtc.Room,
        caller: str,
        agent: RoomAgent,
        marks: ConnectionMarks,
        turns: Turns,
    ) -> None:
        self.session_events: list[dict[str, Any]] = []
        self.hosts_session = False
        self.offset: ClockOffset | None = None
        self.worker: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.model_error = self.last_agent = ""
        self._room, self._agent = room, agent
        self._marks, self._turns = marks, turns
        self._offset_of = ""
        self._transcription = Transcription(room, caller, self.add)
        remote_session = importlib.import_module(SESSION_MODULE)
        self._session: RemoteSession = remote_session.RemoteSession(
            remote_session.RoomSessionTransport(room)
        )

    @property
    def missing(self) -> str:
        """Which figures an agent that is not labvoice's does not report, as a sentence."""
        words = "the agent is not labvoice's: its worker's marks are not known"
        if not self.hosts_session:
            words += ", nor LiveKit's figures of its turns, for it hosts no session events"
        return words

    async def start(self) -> None:
        """Collects session events from now on; the room may be connected later."""
        for name in SESSION_EVENTS:
            # its type names the events of version 1.8 only
            self._session.on(name, self._on_event)  # type: ignore[arg-type]
        await self._session.start()

    async def fetch(self) -> None:
        """Fetches the worker's marks, and figures missing in the session's events.

        Raises:
            AgentLostError: The agent left.
            LabvoiceError: It did not answer.
        """
        agent = self._agent.identity
        if not self._agent.is_labvoices:
            self.last_agent = agent
            return  # another agent has no such RPC
        try:
            if self.offset is None or self._offset_of != agent:
                self.offset, self._offset_of = await measure_offset(self._room, agent), agent
            answer = await self._room.local_participant.perform_rpc(
                destination_identity=agent, method=RPC_MARKS, payload=""
            )
        except rtc.RpcError as error:
            sentence = f"the agent did not answer when it was asked for its marks: {error.message}"
            hint = "the worker's log tells whether its job ended"
            if self._agent.gone:
                raise AgentLostError(sentence, hint) from None
            # The agent is in its room: the instrument's request failed.
            raise LabvoiceError(sentence, hint) from None
        self.worker, self.last_agent = json.loads(answer), agent
        marks = self.worker.pop("marks")
        for name in WORKER_CONNECTION_MARKS:
            if marks.get(name):
                self._marks.add(self.offset.to_caller(name, marks[name]))
        self._turns.figures(self.worker.pop("figures"))
        self.memory = self.worker.pop("memory")
        self.model_error = self.worker.pop("model_error", "")

    async def until(self, condition: Callable[[], bool], stage: str, timeout_s: float) -> None:
        """Fetches until a condition of what was fetched holds.

        Raises:
            StageTimeoutError: It does not in time.
            AgentLostError: The agent left.
        """

        async def fetched() -> bool:
            await self.fetch()
            return condition()

        if not await poll(fetched, timeout_s, _POLL_S):
            raise StageTimeoutError(stage, timeout_s, f"the agent reports: {self.memory}")

    async def why_no_reply(self, error: NoReplyError) -> NoReplyError:
        """Returns the same error, with what the agent's model answered where that is the cause."""
        with contextlib.suppress(LabvoiceError):
            await self.fetch()
            if why := self.model_error:
                hint = refusal_hint(why, _MODEL_HINT)
                return NoReplyError(error.stage, error.timeout_s, why, hint)
        return error

    def add(self, item: Item) -> None:
        """Adds a message from a text stream, which session events bring with LiveKit's figures."""
        if not self.hosts_session:
            self._turns.item(item)
            self._marks.changed.set()

    async def aclose(self) -> None:
        """Stops collecting."""
        try:
            await self._session.aclose()
        finally:
            for name in SESSION_EVENTS:
                self._session.off(name, self._on_event)  # type: ignore[arg-type]
            await self._transcription.aclose()

    def _on_event(self, event: session_pb.AgentSessionEvent) -> None:
        name = event.WhichOneof("event") or ""
        if name == "agent_state_changed":
            self._on_state(event)
        elif name == "conversation_item_added":
            self._on_item(event)
        self.hosts_session = True
        fields = json_format.MessageToDict(
            getattr(event, name),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,  # `US_SPEAKING` and false are values too
        )
        at_s = event.created_at.ToNanoseconds() / 1e9
        self.session_events.append(
            {"event": name, "heard_s": time.monotonic(), "agent_wall_s": at_s, **fields}
        )

    def _on_state(self, event: session_pb.AgentSessionEvent) -> None:
        number = event.agent_state_changed.new_state
        self._agent.on_state(session_pb.AgentState.Name(number).removeprefix("AS_").lower())

    def _on_item(self, event: session_pb.AgentSessionEvent) -> None:
        message = event.conversation_item_added.item.message
        known = message.metrics.DESCRIPTOR.fields_by_name
        self._turns.item(
            Item(
                message.id,
                _ROLES.get(message.role, ""),
                " ".join(part.text for part in message.content if part.text),
                message.interrupted,
                {
                    name: getattr(message.metrics, name)
                    for name in AGENT_TURN_STAGES
                    if name in known and message.metrics.HasField(name)
                },
                _spoken(message.metrics),
            )
        )
        self._marks.changed.set()


def _spoken(metrics: session_pb.MetricsReport) -> tuple[float, float] | None:
    """Returns when a message was spoken, in seconds on the agent's clock; None where untold."""
    if not (metrics.HasField("started_speaking_at") and metrics.HasField("stopped_speaking_at")):
        return None
    return (
        metrics.started_speaking_at.ToNanoseconds() / 1e9,
        metrics.stopped_speaking_at.ToNanoseconds() / 1e9,
    )
