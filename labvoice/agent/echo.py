"""A worker whose agents send back what they hear, a second later, to load the media path alone.

They send nothing while there is nothing to send back, as their callers do between two turns.

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
from typing import Final

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import AutoSubscribe, JobContext
from livekit.agents.types import ATTRIBUTE_AGENT_STATE

from labvoice.agent._livekit import send_frame, wake_for_own_frames
from labvoice.agent.guard import refused_by_server
from labvoice.agent.noop import make_noop_server
from labvoice.agent.worker import run_worker
from labvoice.concurrency import cancel, together
from labvoice.protocol.vocabulary import RPC_CLOCK, RPC_MARKS
from labvoice.settings import load_settings

Samples = npt.NDArray[np.int16]

ECHO_DELAY_S: Final = 1.0
"""From a sample's arrival to its leaving again, in seconds: longer than what the callers say, so
that the reply follows it."""
_SAMPLE_RATE_HZ: Final = 48000
_FRAME_S: Final = 0.01  # a source without a queue takes frames of this length
_FRAME_SAMPLES: Final = round(_SAMPLE_RATE_HZ * _FRAME_S)
_TAKEN_MS: Final = 100
"""What the SDK hands over at once: each time costs more than the sending of a frame."""
_SILENCE: Final = 33  # -60 dBFS
_TAIL_S: Final = 0.2
"""Silence after a sound that is sent back with it: it ends the last packet of the sound."""


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
    publication = await local.publish_track(track, options)
    subscribed = asyncio.create_task(publication.wait_for_subscription())
    caller = await context.wait_for_participant()
    sound = rtc.AudioStream.from_participant(
        participant=caller,
        track_source=rtc.TrackSource.SOURCE_MICROPHONE,
        sample_rate=_SAMPLE_RATE_HZ,
        num_channels=1,
        frame_size_ms=_TAKEN_MS,
    )
    wake_for_own_frames(sound)
    await local.set_attributes({ATTRIBUTE_AGENT_STATE: "listening"})
    waiting: asyncio.Queue[tuple[float, Samples]] = asyncio.Queue()
    echoing = asyncio.create_task(
        together(_hear(sound, waiting), _send(source, waiting, subscribed))
    )
    # The job would otherwise end 15 s after its call: so long LiveKit waits for an entrypoint.
    context.room.on("disconnected", lambda _: echoing.cancel())
    try:
        await asyncio.wait([echoing])
    finally:
        await cancel(echoing, subscribed)
        await sound.aclose()
        await source.aclose()


async def _hear(sound: rtc.AudioStream, waiting: asyncio.Queue[tuple[float, Samples]]) -> None:
    """Takes what is heard, but for silence: frames of 10 ms, and when each is to leave."""
    before: list[tuple[float, Samples]] = []
    loud_s = float("-inf")
    async for event in sound:
        at_s = time.monotonic()
        samples = np.frombuffer(event.frame.data, np.int16).copy()
        pieces = samples.reshape(-1, _FRAME_SAMPLES)
        first_s = at_s + ECHO_DELAY_S - (len(pieces) - 1) * _FRAME_S
        heard = [(first_s + place * _FRAME_S, piece) for place, piece in enumerate(pieces)]
        if np.abs(samples.astype(np.int32)).max() > _SILENCE:
            loud_s = at_s
        if at_s - loud_s <= _TAIL_S:
            for each in (*before, *heard):
                waiting.put_nowait(each)
            before = []
        else:
            before = heard


async def _send(
    source: rtc.AudioSource,
    waiting: asyncio.Queue[tuple[float, Samples]],
    subscribed: asyncio.Task[None],
) -> None:
    """Sends frames when they are due; before, silence until somebody has subscribed."""

    async def send(samples: Samples) -> None:
        await send_frame(
            source, rtc.AudioFrame(samples.tobytes(), _SAMPLE_RATE_HZ, 1, _FRAME_SAMPLES)
        )

    while not subscribed.done():
        await send(np.zeros(_FRAME_SAMPLES, np.int16))
        await asyncio.sleep(_FRAME_S)
    while True:
        due_s, samples = await waiting.get()
        await asyncio.sleep(due_s - time.monotonic())
        await send(samples)


if __name__ == "__main__":
    sys.exit(run_worker(functools.partial(make_noop_server, work=entrypoint)))
