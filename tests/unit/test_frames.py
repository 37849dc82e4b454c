"""A process and the native side of the SDK, without a server: frames of sound, and its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
from livekit import rtc

from labvoice.agent._livekit import send_frame, wake_for_own_frames

_EXITS = """
import sys, threading, time
from livekit.rtc._ffi_client import FfiClient, ffi_cb_fnc
from labvoice.agent._livekit import new_room

begun = threading.Event()

@ffi_cb_fnc
def callback(data, size, sleep=time.sleep, begun=begun):
    begun.set()
    for _ in range(50):
        sleep(0.001)  # gives the interpreter away, and takes it again

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(1)

new_room()
sys.late = Late()  # the interpreter takes its time to end
FfiClient.instance._ffi_lib.livekit_ffi_initialize(callback, True, b"python", b"test")
assert begun.wait(20)
"""
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


def test_a_process_that_ends_waits_for_what_the_sdk_calls() -> None:
    """A callback under way when the process ends does not abort it (exit by signal 6)."""
    done = subprocess.run(
        [sys.executable, "-c", _EXITS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
