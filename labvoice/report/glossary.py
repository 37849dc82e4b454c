"""What every stage and outcome means, in the words that the report prints."""

from __future__ import annotations

from typing import Final

STAGES: Final = {
    "dispatch": "From asking the server for the agent to the server's answer. The answer says "
    "only that the request was taken, not that any worker will come.",
    "job_request": "From asking for the agent to the worker's being offered the job. The server "
    "looks for a worker for at least 200 ms.",
    "join": "From asking for the agent to the caller's seeing it in the room.",
    "ready": "From asking for the agent to its saying that it listens.",
    "connection": "From the user's click to the agent's saying that it listens.",
    "time_to_greeting": "From the user's click to the first audible sample of the greeting.",
    "recovery": "From the death of the agent (or its being stopped, as a hang) to another agent's "
    "saying that it listens.",
    "silence": "From the death of the agent to the first audible sample of the agent that took "
    "its place.",
    "voice_to_voice": "From the last voiced sample that left the caller to the first voiced "
    "sample of the reply that reached the caller.",
    "answer": "Where a reply begins with a filler (“let me check”): from the last voiced sample "
    "that left the caller to the first of what follows the filler. A part of 3 s at most is a "
    "filler when another message follows it, or anything after 1 s of silence.",
    "yield_latency": "From the first voiced sample of an interruption that left the caller to the "
    "last voiced sample of the agent's that reached it.",
    "interruption_recovery": "From the last voiced sample of an interruption that left the caller "
    "to the first voiced sample of the new reply that reached it.",
    "resume": "From the end of the agent's voice to its going on, where it had stopped at a sound "
    "that asked for nothing.",
    "cut_in": "From the last voiced sample before a pause in mid-sentence to the agent's voice, "
    "where it did not wait for the rest.",
    "overlap": "How long caller and agent spoke at once.",
    "voice_to_voice_error": "What the caller read for a reply whose delay is known, less that "
    "delay: uplink and downlink. A user's ear has both ways as well, so this bounds the "
    "instrument's own error from above.",
    "packetisation": "How long the two edges of a turn wait in their packets of 20 ms, as every "
    "client's do.",
    "instrument_error": "What the caller reads more than its packets say, less its jitter buffer "
    "and packetisation: the error of the instrument itself.",
    "uplink": "From the last voiced sample's leaving the caller to its being heard by the "
    "reference agent.",
    "downlink": "From the first voiced sample's leaving the reference agent to its being heard "
    "by the caller.",
    "end_of_turn_delay": "LiveKit's figure: from the end of speech to the decision that the "
    "user's turn is over.",
    "transcription_delay": "LiveKit's figure: from the end of speech to the final transcript. It "
    "lies inside end_of_turn_delay.",
    "on_user_turn_completed_delay": "LiveKit's figure: how long the agent's own callback at the "
    "end of a turn took.",
    "llm_node_ttft": "LiveKit's figure: from the model's start to its first token.",
    "llm_node_ttfs": "LiveKit's figure: from the model's start until the first sentence was "
    "handed to speech synthesis. It holds llm_node_ttft.",
    "tts_node_ttfb": "LiveKit's figure: from the first text given to speech synthesis to its "
    "first audio.",
    "playback_latency": "LiveKit's figure: from the first audio to its leaving the agent.",
    "e2e_latency": "LiveKit's figure: from the end of speech as the agent heard it to the "
    "reply's leaving the agent.",
    "transport": "voice_to_voice (or answer, where LiveKit's figures are of that) less "
    "e2e_latency: network, jitter buffers and queues at both ends, and whatever else the agent's "
    "figures do not explain. It is shown, never spread.",
    "voice_to_voice_wire": "From the leaving of the packet with the caller's last voiced sample to "
    "the arrival of the first voiced packet of the reply: voice_to_voice without what the caller's "
    "own ends add.",
    "jitter_buffer": "Mean time that the agent's sound spent in the caller's jitter buffer, from "
    "the end of speech to the end of the reply, by WebRTC's statistics.",
    "transport_caller": "Part of transport: from the last voiced sample to the packet that it "
    "leaves the caller in.",
    "transport_wire": "Part of transport: packets under way, to the agent and back.",
    "transport_agent": "Part of transport: what passes between the two packets at the agent beyond "
    "e2e_latency, such as its own jitter buffer.",
    "transport_rest": "Part of transport: from the arrival of the first voiced packet of the reply "
    "to its being heard, less jitter_buffer.",
    "memory_load": "From the start of the session to the first memory blocks from Letta. No call "
    "waits for it.",
    "memory_sync": "From the end of a turn to its facts' being in Letta's memory blocks, in the "
    "background.",
    "letta_ttft": "In letta mode: from asking Letta to its first token.",
}

OUTCOMES: Final = {
    "ok": "The agent listened, or the turn was answered.",
    "no_worker": "No worker was registered that could take the job.",
    "worker_full": "Every worker of that name was at or above its load threshold.",
    "name_mismatch": "Workers were registered, none under the name asked for.",
    "rejected": "The worker's request handler refused the job.",
    "join_timeout": "A worker took the job, its agent was not in the room in time.",
    "duplicate_agent": "More than one agent of that name was in the room.",
    "agent_lost": "The agent joined and left, or its job ended.",
    "no_reply": "The agent did not answer the turn in time.",
    "interrupted": "The reply was cut off, or the turn was split in two.",
    "assertion_failed": "What a scenario expects does not hold; its failures say what, and where.",
    "error": "Something else went wrong; its detail is in the run file.",
}

PHRASES: Final = {
    "connection": "from the click until the agent listens",
    "time_to_greeting": "from the click until the greeting is heard",
    "recovery": "from the agent's death until another one listens",
    "yield_latency": "from an interruption until the agent is silent",
    "instrument_error": "what the instrument itself adds, behind its jitter buffer",
    "voice_to_voice_error": "read too much for a reply of known delay",
    "voice_to_voice": "from the end of speech until the reply is heard",
}
"""Stages as they are called in a sentence."""
