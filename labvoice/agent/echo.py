"""A worker whose agents send back what they hear, a second later, to load the media path alone.

Run as `python -m labvoice.agent.echo --port PORT --agent-name NAME`. It loads no model, and its
jobs are threads, as those of :mod:`labvoice.agent.noop`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
from collections import deque
from typing import Final

from livekit import rtc
from livekit.agents import AutoSubscribe, JobContext
from livekit.agents.types import ATTRIBUTE_AGENT_STATE

from labvoice.agent._livekit import send_frame, wake_for_own_frames
from labvoice.agent.guard import refused_by_server
from labvoice.agent.noop import make_noop_server
from labvoice.agent.worker import run_worker
from labvoice.protocol.vocabulary import RPC_CLOCK, RPC_MARKS
from labvoice.settings import load_settings

ECHO_DELAY_S: Final = 1.0
"""From a sample's arrival to its leaving again, in seconds: longer than what the callers say, so
that the reply follows it."""
_SAMPLE_RATE_HZ: Final = 48000
_FRAME_S: Final = 0.01  # a source without a queue takes frames of this length


async def entrypoint(context: JobContext) -> None:
    """Joins, and sends back what the caller says, unless the dispatch was withdrawn."""
    if await refused_by_server(load_settings(), context.job):
        context.shutdown()
        return
    await context.connect(auto_subscribe=AutoSubscribe.AUDIO_ONLY)
    local = context.room.local_participant

    async def answer_clock(_: rtc.RpcInvocationData) -> str:
        return json.dumps({"wall_s": time.time()})

    async def answer_marks(_: rtc.RpcInvocationData) -> str:
        job = {"job_id": context.job.id, "worker_id": context.worker_id, "pid": os.getpid()}
        return json.dumps({**job, "marks": {}, "figures": {}, "memory": {}})

    local.register_rpc_method(RPC_CLOCK, answer_clock)
    local.register_rpc_method(RPC_MARKS, answer_marks)
    source = rtc.AudioSource(_SAMPLE_RATE_HZ, 1, queue_size_ms=0)
    track = rtc.LocalAudioTrack.create_audio_track("agent-audio", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
    await local.publish_track(track, options)
    caller = await context.wait_for_participant()
    sound = rtc.AudioStream.from_participant(
        participant=caller,
        track_source=rtc.TrackSource.SOURCE_MICROPHONE,
        sample_rate=_SAMPLE_RATE_HZ,
        num_channels=1,
        frame_size_ms=round(_FRAME_S * 1000),
    )
    wake_for_own_frames(sound)
    await local.set_attributes({ATTRIBUTE_AGENT_STATE: "listening"})
    echoing = asyncio.create_task(_send_back(sound, source))
    # The job would otherwise end 15 s after its call: so long LiveKit waits for an entrypoint.
    context.room.on("disconnected", lambda _: echoing.cancel())
    try:
        await asyncio.wait([echoing])
    finally:
        echoing.cancel()
        await sound.aclose()
        await source.aclose()


async def _send_back(sound: rtc.AudioStream, source: rtc.AudioSource) -> None:
    waiting: deque[rtc.AudioFrame] = deque()
    async for event in sound:
        waiting.append(event.frame)
        if len(waiting) > ECHO_DELAY_S / _FRAME_S:
            await send_frame(source, waiting.popleft())


if __name__ == "__main__":
    sys.exit(run_worker(functools.partial(make_noop_server, work=entrypoint)))
