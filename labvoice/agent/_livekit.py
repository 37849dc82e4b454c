"""All uses of LiveKit's private names; check this module when upgrading the pinned versions.

Checked against livekit-agents 1.8.9 and livekit 1.1.21. No other module of labvoice uses a private
name of theirs (`tests/unit/test_front_door.py`). Heavy imports are inside the functions: the
forkserver reads its list from here before the worker has imported anything.
"""

from __future__ import annotations

import atexit
import functools
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from livekit import api, rtc
    from livekit.agents import AgentServer, JobContext
    from livekit.agents.voice.room_io._output import _ParticipantAudioOutput
    from livekit.rtc._proto.ffi_pb2 import FfiEvent

PRELOADED: Final = ("livekit.agents.ipc._preload", "livekit.agents.ipc._preload_freeze")
"""Modules that livekit-agents preloads in its forkserver (worker.py, `run`)."""

PRELOAD_DETECTORS: Final = "LIVEKIT_AGENTS_PRELOAD_LOCAL_INFERENCE"
"""Environment variable that says whether these modules load v1-mini and the voice detector
(ipc/_preload.py); whoever needs them loads them at first use."""

_CALLBACKS_S: Final = 0.1
"""How long the exit of a process waits for callbacks, which take less than a millisecond each."""


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


def keep_native_log() -> None:
    """Has the SDK's native side keep its log: its errors alone go to the standard error.

    It hands every line to Python, also those of a level that nobody has asked for, each by a thread
    that waits for the interpreter (rtc/_ffi_client.py, `FfiClient.__init__`): a connection has
    6,000 of them, which take 0.2 s of processor.
    """
    from livekit.rtc._ffi_client import FfiClient, ffi_event_callback
    from livekit.rtc.version import __version__

    initialize = FfiClient.instance._ffi_lib.livekit_ffi_initialize
    initialize(ffi_event_callback, False, b"python", __version__.encode())


def new_room() -> rtc.Room:
    """Returns a room that is not connected, in a process whose exit the SDK does not abort."""
    from livekit import rtc

    _outlast_callbacks()
    return rtc.Room()


@functools.cache
def _outlast_callbacks() -> None:
    """Has the exit of this process wait for callbacks of the SDK's native side that are under way.

    Its disposal (rtc/_ffi_client.py, `_dispose`) forbids new ones and waits for none. One that asks
    for the interpreter after that has begun to end loses its thread, which Rust takes for a panic:
    the process aborts after its work was done (signal 6).
    """

    def dispose() -> None:
        from livekit.rtc._ffi_client import FfiClient

        FfiClient.instance._dispose()
        time.sleep(_CALLBACKS_S)

    atexit.register(dispose)


def wake_for_own_frames(stream: rtc.AudioStream) -> None:
    """Has an audio stream woken by its own frames alone.

    The SDK wakes each stream of a process for the frames of all (rtc/audio_stream.py, `_run`):
    100 calls in one process cost 10,000 wake-ups for every frame of each.
    """
    from livekit.rtc._ffi_client import FfiClient

    queue, handle = FfiClient.instance.queue, stream._ffi_handle.handle

    def is_own(event: FfiEvent) -> bool:
        kind = event.WhichOneof("message") == "audio_stream_event"
        return kind and event.audio_stream_event.stream_handle == handle

    with queue._lock:
        queue._subscribers[:] = [
            (each, loop, is_own if each is stream._ffi_queue else is_wanted)
            for each, loop, is_wanted in queue._subscribers
        ]


async def send_frame(source: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
    """Hands a frame to a source, and waits until it has been taken: frames keep their order.

    `capture_frame` is woken by all events of the process meanwhile (rtc/audio_source.py). After
    the source was closed it does nothing.

    Raises:
        RuntimeError: The source has not taken it.
    """
    from livekit.rtc._ffi_client import FfiClient
    from livekit.rtc._proto.ffi_pb2 import FfiRequest

    if source._ffi_handle.disposed:
        return
    asked = 0

    def is_own(event: FfiEvent) -> bool:
        # Until the request has its number, which may be after the answer, it may be any.
        kind = event.WhichOneof("message") == "capture_audio_frame"
        return kind and asked in (0, event.capture_audio_frame.async_id)

    request = FfiRequest()
    request.capture_audio_frame.source_handle = source._ffi_handle.handle
    request.capture_audio_frame.buffer.CopyFrom(frame._proto_info())
    answers = FfiClient.instance.queue.subscribe(filter_fn=is_own)
    try:
        asked = FfiClient.instance.request(request).capture_audio_frame.async_id
        answer = await answers.wait_for(lambda event: event.capture_audio_frame.async_id == asked)
    finally:
        FfiClient.instance.queue.unsubscribe(answers)
    if answer.capture_audio_frame.error:
        raise RuntimeError(answer.capture_audio_frame.error)


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
