"""All uses of livekit-agents' private names; check this module when upgrading the pinned version.

Checked against livekit-agents 1.8.9. No other module of labvoice uses a private name of LiveKit's
(`tests/unit/test_front_door.py`). Heavy imports are inside the functions: the forkserver reads its
list from here before the worker has imported anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from livekit import api, rtc
    from livekit.agents import AgentServer, JobContext
    from livekit.agents.voice.room_io._output import _ParticipantAudioOutput

PRELOADED: Final = ("livekit.agents.ipc._preload", "livekit.agents.ipc._preload_freeze")
"""Modules that livekit-agents preloads in its forkserver (worker.py, `run`)."""

PRELOAD_DETECTORS: Final = "LIVEKIT_AGENTS_PRELOAD_LOCAL_INFERENCE"
"""Environment variable that says whether these modules load v1-mini and the voice detector
(ipc/_preload.py); whoever needs them loads them at first use."""


def server_api(server: AgentServer) -> api.LiveKitAPI:
    """Returns the worker's client of the LiveKit server; it exists once the worker runs."""
    assert server._api is not None
    return server._api


def load_threshold(server: AgentServer) -> float:
    """Returns the load at which a worker in production mode takes no more jobs."""
    from livekit.agents.worker import ServerEnvOption

    return ServerEnvOption.getvalue(server._load_threshold, False)


def listen(server: AgentServer, host: str, metrics_port: int | None) -> None:
    """Sets where a worker that does not run yet serves its health, and its metrics if anywhere."""
    server._host = host
    server._prometheus_port = metrics_port


def job_times(context: JobContext) -> dict[str, float]:
    """Returns the job's marks up to its process, in seconds of this machine's wall clock."""
    info = context._info
    return {
        "job_received": info.received_at,
        "job_accepted": info.accepted_at,
        "job_assigned": info.assigned_at,
        "process_assigned": info.launched_at,
    }


def audio_output(room: rtc.Room, *, sample_rate_hz: int, track: str) -> _ParticipantAudioOutput:
    """Returns an audio output whose track is published before any other participant joins.

    The room's own audio output publishes only when a participant is present; an agent that was
    dispatched ahead would look absent until then (room_io.py, `_init_task`).
    """
    from livekit import rtc
    from livekit.agents.voice.room_io._output import _ParticipantAudioOutput

    return _ParticipantAudioOutput(
        room,
        sample_rate=sample_rate_hz,
        num_channels=1,
        track_publish_options=rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE),
        track_name=track,
    )
