"""What an agent's session reports: every event of LiveKit's, over its own protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

from livekit import rtc
from livekit.agents import AgentSession
from livekit.agents.inference.interruption import OverlappingSpeechEvent
from livekit.agents.llm import ChatMessage, FunctionCall, FunctionCallOutput
from livekit.agents.metrics import AgentSessionUsage, LLMModelUsage
from livekit.agents.voice import events as told
from livekit.agents.voice.remote_session import RoomSessionTransport, SessionHost
from livekit.protocol.agent_pb import agent_session as session_pb

from labvoice.caller.agent import RoomAgent
from labvoice.caller.marks import ConnectionMarks
from labvoice.caller.reports import SESSION_EVENTS, AgentReports
from labvoice.caller.turns import Turns

NOW_S: Final = 1_800_000_000.0
CALL: Final = FunctionCall(call_id="c1", name="find_appointment", arguments='{"user": "Ann"}')
RESULT: Final = FunctionCallOutput(
    call_id="c1", name="find_appointment", output="Monday", is_error=False
)
TOLD: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "agent_state_changed": (
        told.AgentStateChangedEvent(old_state="idle", new_state="initializing"),
        {"old_state": "AS_IDLE", "new_state": "AS_INITIALIZING"},
    ),
    "user_state_changed": (
        told.UserStateChangedEvent(old_state="away", new_state="speaking", created_at=NOW_S),
        {"old_state": "US_AWAY", "new_state": "US_SPEAKING", "agent_wall_s": NOW_S},
    ),
    "user_input_transcribed": (
        told.UserInputTranscribedEvent(transcript="Find my", is_final=False),
        {"transcript": "Find my", "is_final": False},
    ),
    "conversation_item_added": (
        told.ConversationItemAddedEvent(
            item=ChatMessage(id="m1", role="user", content=["Find my appointment."])
        ),
        {"item.message.role": "USER", "item.message.interrupted": False},
    ),
    "function_tools_executed": (
        told.FunctionToolsExecutedEvent(function_calls=[CALL], function_call_outputs=[RESULT]),
        {
            "function_calls.0.name": "find_appointment",
            "function_calls.0.arguments": '{"user": "Ann"}',
            "function_call_outputs.0.output": "Monday",
            "function_call_outputs.0.is_error": False,
        },
    ),
    "tool_execution_updated": (
        told.ToolExecutionUpdatedEvent(
            update=told.ToolCallStarted(function_call=CALL), created_at=NOW_S
        ),
        {
            "started.function_call.name": "find_appointment",
            "started.function_call.arguments": '{"user": "Ann"}',
            "agent_wall_s": NOW_S,
        },
    ),
    "session_usage_updated": (
        told.SessionUsageUpdatedEvent(
            usage=AgentSessionUsage([LLMModelUsage(provider="p", model="m", input_tokens=12)])
        ),
        {"usage.model_usage.0.llm.input_tokens": 12, "usage.model_usage.0.llm.output_tokens": 0},
    ),
    "agent_false_interruption": (
        told.AgentFalseInterruptionEvent(resumed=False, created_at=NOW_S),
        {"resumed": False, "agent_wall_s": NOW_S},
    ),
    "error": (
        told.ErrorEvent(error=RuntimeError("the model is gone"), source=None),
        {"message": "the model is gone"},
    ),
    "overlapping_speech": (
        OverlappingSpeechEvent(is_interruption=False, detection_delay=0.5, detected_at=NOW_S),
        {
            "is_interruption": False,
            "detection_delay": 0.5,
            "detected_at": "2027-01-15T08:00:00Z",
        },
    ),
}
"""What a session of livekit-agents tells its host, and what of it is recorded."""
_EVENT: Final = session_pb.AgentSessionEvent
SENT: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "eot_prediction": (
        _EVENT(eot_prediction=_EVENT.EotPrediction(probability=0.75, threshold=0.5)),
        {"probability": 0.75, "threshold": 0.5},
    ),
    "amd_prediction": (
        _EVENT(amd_prediction=_EVENT.AmdPrediction(category=session_pb.AMD_HUMAN)),
        {"category": "AMD_HUMAN"},
    ),
    "function_tools_started": (
        _EVENT(function_tools_started=_EVENT.FunctionToolsStarted()),
        {"function_calls": []},
    ),
}
"""Events that a turn detector, an answering machine's detector or another SDK sends by itself."""


class _Room:
    """One end of a room of two, which hands the other's byte streams on."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., None]] = {}
        self.local_participant, self.other = self, self

    def isconnected(self) -> bool:
        """Whether it is connected."""
        return True

    def register_text_stream_handler(self, topic: str, handler: Callable[..., None]) -> None:
        """No text is sent."""

    def unregister_text_stream_handler(self, topic: str) -> None:
        """None is taken any more."""

    def register_byte_stream_handler(self, topic: str, handler: Callable[..., None]) -> None:
        """Takes who reads what is sent to this end."""
        self.handlers[topic] = handler

    def unregister_byte_stream_handler(self, topic: str) -> None:
        """Takes nothing more."""
        del self.handlers[topic]

    async def send_bytes(self, data: bytes, *, topic: str, **_: Any) -> None:
        """Sends to the other end, in two chunks."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data[:5]
            yield data[5:]

        self.other.handlers[topic](chunks(), "agent")


def _at(fields: Any, path: str) -> Any:
    for name in path.split("."):
        fields = fields[int(name) if name.isdigit() else name]
    return fields


async def test_every_event_of_a_session_is_recorded_with_its_fields() -> None:
    """What the SDK's own host sends is kept in order, false and zero included, and is JSON."""
    assert set(TOLD) | set(SENT) == set(SESSION_EVENTS)
    agents, callers = _Room(), _Room()
    agents.other = callers
    room = cast("rtc.Room", callers)
    marks, turns = ConnectionMarks(), Turns()

    async def why_ended(*_: str) -> str:
        return ""

    agent = RoomAgent(room, "caller", marks, turns, lambda *_: None, why_ended)
    reports = AgentReports(room, "caller", agent, marks, turns)
    await reports.start()
    transport = RoomSessionTransport(cast("rtc.Room", agents))
    session, host = rtc.EventEmitter[str](), SessionHost(transport)
    host.register_session(cast("AgentSession[None]", session))
    await host.start()
    try:
        for name, (event, _) in TOLD.items():
            session.emit(name, event)
        async with asyncio.timeout(10):
            while len(reports.session_events) < len(TOLD):
                await asyncio.sleep(0)
            for event, _ in SENT.values():
                await transport.send_message(session_pb.AgentSessionMessage(event=event))
            while len(reports.session_events) < len(TOLD) + len(SENT):
                await asyncio.sleep(0)
    finally:
        await host.aclose()
        await reports.aclose()
    assert [event["event"] for event in reports.session_events] == [*TOLD, *SENT]
    assert json.loads(json.dumps(reports.session_events)) == reports.session_events
    for event in reports.session_events:
        _, wanted = (TOLD | SENT)[event["event"]]
        assert {path: _at(event, path) for path in wanted} == wanted, event
        assert event["heard_s"] > 0
    assert reports.hosts_session
