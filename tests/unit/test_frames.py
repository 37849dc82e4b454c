"""Frames of sound between a process and the SDK, without a server."""

from __future__ import annotations

import asyncio

import numpy as np
from livekit import rtc

from labvoice.agent._livekit import send_frame, wake_for_own_frames

_RATE_HZ = 48000
_SAMPLES = 480


def frame(value: int) -> rtc.AudioFrame:
    """10 ms of one value."""
    return rtc.AudioFrame(np.full(_SAMPLES, value, np.int16).tobytes(), _RATE_HZ, 1, _SAMPLES)


async def test_each_stream_has_its_own_frames_in_the_order_they_were_sent() -> None:
    """Two tracks in one process: neither hears the other, and no frame overtakes one before it."""
    sources = [rtc.AudioSource(_RATE_HZ, 1, queue_size_ms=0) for _ in range(2)]
    tracks = [rtc.LocalAudioTrack.create_audio_track("track", each) for each in sources]
    streams = [
        rtc.AudioStream.from_track(track=each, sample_rate=_RATE_HZ, num_channels=1)
        for each in tracks
    ]
    for stream in streams:
        wake_for_own_frames(stream)
    sent = [[1000 * (number + 1) + count for count in range(10)] for number in range(2)]
    for values in zip(*sent, strict=True):
        for source, value in zip(sources, values, strict=True):
            await send_frame(source, frame(value))

    async def heard(stream: rtc.AudioStream) -> list[int]:
        found: list[int] = []
        async with asyncio.timeout(20):
            async for event in stream:
                found.append(int(np.frombuffer(event.frame.data, np.int16)[0]))
                if len(found) == len(sent[0]):
                    break
        return found

    assert [await heard(stream) for stream in streams] == sent
    for source, stream in zip(sources, streams, strict=True):
        await stream.aclose()
        await source.aclose()
    await send_frame(sources[0], frame(0))  # closed: nothing happens
