"""A bot that joins by itself, as one of another framework does: a tone is its greeting.

Run as `python tone_bot.py URL TOKEN`.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import numpy as np
from livekit import rtc

RATE_HZ = 48000


async def main(url: str, token: str) -> None:
    """Joins, sounds for a second, and stays until it is told to end."""
    room = rtc.Room()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    heard = asyncio.Event()
    room.on("participant_connected", lambda _: heard.set())
    await room.connect(url, token)
    source = rtc.AudioSource(RATE_HZ, 1)
    track = rtc.LocalAudioTrack.create_audio_track("voice", source)
    await room.local_participant.publish_track(track)
    await room.local_participant.set_attributes({"lk.agent.state": "listening"})
    if not room.remote_participants:
        await heard.wait()
    sys.stderr.write(f"token in use: {token}\n")
    silence = np.zeros(RATE_HZ, np.int16)
    tone = (8000 * np.sin(2 * np.pi * 300 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.int16)
    for sound in (silence, tone, silence):
        await source.capture_frame(rtc.AudioFrame(sound.tobytes(), RATE_HZ, 1, RATE_HZ))
    await ended.wait()
    await room.disconnect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
