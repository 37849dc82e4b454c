"""The vocabulary: marks are instants, stages are the time between two marks.

All instants are seconds on the caller's monotonic clock. A worker's mark is moved there by
the measured clock offset and carries that offset's uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

CALLER_CONNECTION_MARKS: Final = (
    "click",
    "token_issued",
    "room_connected",
    "mic_published",
    "dispatch_requested",
    "dispatch_acknowledged",
    "agent_visible",
    "agent_audio_subscribed",
    "agent_listening",
    "greeting_heard",
)
"""Connection marks set by the caller. `click` is the trial's intended start."""

WORKER_CONNECTION_MARKS: Final = (
    "job_received",
    "job_accepted",
    "job_assigned",
    "process_assigned",
    "entrypoint_started",
    "agent_connected",
    "agent_track_published",
    "session_started",
)
"""Connection marks set by the worker, in their order."""

FAILOVER_MARKS: Final = (
    "agent_killed",
    "replacement_visible",
    "replacement_listening",
    "apology_heard",
)
"""Failover marks, set by the caller: the agent was killed; the replacement was visible, listened,
and was heard."""

TURN_MARKS: Final = (
    "user_speech_start",
    "user_speech_end",
    "reply_heard",
    "answer_heard",
    "reply_end",
)
"""Marks of a turn: first and last voiced sample of the user that left the caller, the first voiced
sample of the reply that reached the caller, that of the answer where a filler came before it, and
the last one of the reply."""


INTERRUPTION_MARKS: Final = (
    "interruption_start",
    "interruption_end",
    "sound_start",
    "sound_end",
    "agent_yielded",
    "agent_resumed",
    "new_reply_heard",
    "pause_start",
    "cut_in_heard",
)
"""Marks of a caller that speaks over the agent: first and last voiced sample of what interrupts, or
of a sound that asks for nothing, that left the caller; the agent's voice ended; it went on; its
reply to the interruption was heard. And of one that pauses in mid-sentence: the last voiced sample
before the pause; the agent's voice was heard before the caller had finished."""
WIRE_MARKS: Final = (
    "speech_packet_sent",
    "speech_packet_at_agent",
    "reply_packet_sent",
    "reply_packet_received",
)
"""Marks of a turn's packets, where relays date them: the packet with the user's last voiced sample
leaves the caller and reaches the agent, and the first voiced packet of the reply leaves the agent
and reaches the caller."""


Clock = Literal["caller", "worker"]
"""The clock that an instant was read from."""


@dataclass(frozen=True)
class Mark:
    """An instant of a call.

    Attributes:
        name: A mark of the vocabulary.
        at_s: The instant, in seconds on the caller's monotonic clock; a worker's is moved there.
        clock: Whose clock it was read from.
        uncertainty_s: Uncertainty of the clock offset applied, in seconds; 0 for the caller's
            marks.
    """

    name: str
    at_s: float
    clock: Clock = "caller"
    uncertainty_s: float = 0.0


class Stage(NamedTuple):
    """The time from one mark to another."""

    name: str
    start: str
    end: str


READY_MARKS: Final = ("agent_listening", "agent_audio_subscribed")
"""What shows an agent to be ready: its state, or of one that tells no state its audio."""

CONNECTION_STAGES: Final = (
    Stage("dispatch", "dispatch_requested", "dispatch_acknowledged"),
    Stage("job_request", "dispatch_requested", "job_received"),
    Stage("join", "dispatch_requested", "agent_visible"),
    Stage("ready", "dispatch_requested", "agent_listening"),
    Stage("connection", "click", "agent_listening"),
    Stage("time_to_greeting", "click", "greeting_heard"),
)
"""The headline stages of a connection. Those that end with `agent_listening` end with
`agent_audio_subscribed` for an agent that tells no state: see :data:`READY_MARKS`."""

FAILOVER_STAGES: Final = (
    Stage("recovery", "agent_killed", "replacement_listening"),
    Stage("silence", "agent_killed", "apology_heard"),
)
"""The headline stages of a failover."""

TURN_STAGES: Final = (
    Stage("voice_to_voice", "user_speech_end", "reply_heard"),
    Stage("answer", "user_speech_end", "answer_heard"),
)
"""A turn's stages. None is negative: a reply that began before the caller had finished has no
latency, and its turn's outcome is `interrupted`."""


INTERRUPTION_STAGES: Final = (
    Stage("yield_latency", "interruption_start", "agent_yielded"),
    Stage("interruption_recovery", "interruption_end", "new_reply_heard"),
    Stage("resume", "agent_yielded", "agent_resumed"),
    Stage("cut_in", "pause_start", "cut_in_heard"),
)
"""The stages of turn-taking; none is negative. `recovery` alone is a failover's."""

OVERLAP: Final = "overlap"
"""How long caller and agent spoke at once, in seconds of a call."""

YIELD_WINDOW_S: Final = 2.0
"""An agent that is interrupted must yield within this time, in seconds (tau2-bench's τ-voice)."""
STAND_WINDOW_S: Final = 1.0
"""An agent must not yield within this time of a sound that asks for nothing (likewise)."""
WIRE_STAGES: Final = (Stage("voice_to_voice_wire", "speech_packet_sent", "reply_packet_received"),)
"""`voice_to_voice` without what the caller's own ends add; the ear's is behind that turn's jitter
buffer."""


def voice_to_voice_s(marks: Mapping[str, float]) -> float | None:
    """Returns a turn's voice-to-voice latency, in seconds.

    None if no reply was heard, or if it began before the caller had finished.
    """
    stage = TURN_STAGES[0]
    if stage.start not in marks or stage.end not in marks:
        return None
    took_s = marks[stage.end] - marks[stage.start]
    return took_s if took_s >= 0 else None


AGENT_TURN_STAGES: Final = (
    "end_of_turn_delay",
    "transcription_delay",
    "on_user_turn_completed_delay",
    "llm_node_ttft",
    "llm_node_ttfs",
    "tts_node_ttfb",
    "playback_latency",
    "e2e_latency",
)
"""LiveKit's own figures of a turn (`ChatMessage.metrics`), in seconds."""


def implausible(metrics: Mapping[str, float], marks: Mapping[str, float]) -> list[str]:
    """Names LiveKit's figures of a turn that cannot be: negative, or longer than the turn.

    Args:
        metrics: The figures, in seconds.
        marks: The turn's marks, in seconds on the caller's clock.
    """
    ends = [marks[mark] for mark in ("reply_heard", "answer_heard") if mark in marks]
    longest_s = max(ends, default=math.inf) - marks.get("user_speech_start", 0.0)
    return [
        name
        for name, took_s in metrics.items()
        if name in AGENT_TURN_STAGES and not 0 <= took_s <= longest_s
    ]


MEMORY_STAGES: Final = ("memory_load", "memory_sync", "letta_ttft")
"""Letta's stages: session start to first memory blocks; end of a turn to its facts being stored in
Letta; request to Letta's first token in letta mode."""

CALIBRATION_STAGES: Final = ("voice_to_voice_error", "uplink", "downlink")
"""The excess of `voice_to_voice` over a known delay, and its two parts: caller to reference, and
reference to caller, both of which a user's ear has as well."""

PACKETISATION: Final = "packetisation"
"""How long a turn's two edges wait in their packets of 20 ms, as every client's do: the last voiced
sample for its packet to fill, the first one of the reply for those before it."""
INSTRUMENT_ERROR: Final = "instrument_error"
"""What the caller reads more than its packets say, less its jitter buffer and
:data:`PACKETISATION`: the error of the instrument itself, where packets are dated."""

TRANSPORT: Final = "transport"
"""The part that the agent's figures do not explain: voice_to_voice minus e2e_latency; where those
are of the answer after a filler, answer minus e2e_latency."""

HEARD_STAGES: Final = (
    "voice_to_voice",
    "answer",
    "time_to_greeting",
    "silence",
    "yield_latency",
    "interruption_recovery",
    "cut_in",
    TRANSPORT,
)
"""Stages that end with a sound at the caller's ear, and so have the instrument's error. `resume`
lies between two sounds there."""

JITTER_BUFFER: Final = "jitter_buffer"
"""Mean time that the agent's sound spent in the caller's jitter buffer, from the end of speech to
the end of the reply, by WebRTC's statistics."""

TRANSPORT_PARTS: Final = (
    "transport_caller",
    "transport_wire",
    "transport_agent",
    JITTER_BUFFER,
    "transport_rest",
)
"""What `transport` consists of, where packets are dated: the last voiced sample leaves the caller;
packets are under way, both ways; what the agent's end adds to its own figure; the caller's jitter
buffer; and what else passes until the ear hears the packet."""

OUTCOMES: Final = (
    "ok",
    "no_worker",
    "worker_full",
    "name_mismatch",
    "rejected",
    "join_timeout",
    "duplicate_agent",
    "agent_lost",
    "no_reply",
    "interrupted",
    "assertion_failed",
    "error",
)
"""Outcomes of trials and turns; failures stay in the data."""

RPC_CLOCK: Final = "labvoice.clock"
"""RPC method of the agent: answers with its monotonic and wall clock, in seconds."""
RPC_MARKS: Final = "labvoice.marks"
"""RPC method of the agent: answers with the connection marks of its job."""
RPC_INTERRUPT: Final = "labvoice.interrupt"
"""RPC method of the agent: stops its speech in mid-word."""
