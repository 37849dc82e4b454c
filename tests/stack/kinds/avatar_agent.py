"""An agent whose voice a second participant publishes on its behalf, as avatars do.

The second participant joins from the job's own process; speech goes to it by LiveKit's protocol for
avatars, a byte stream.
"""

import asyncio
import os

from livekit import api, rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    DataStreamAudioOutput,
    DataStreamAudioReceiver,
)

AVATAR, RATE = "avatar", 24000

server = AgentServer()


async def run_avatar(url: str, token: str, agent: str) -> None:
    """Publishes what the agent says, until the process ends."""
    room = rtc.Room()
    await room.connect(url, token)
    source = rtc.AudioSource(RATE, 1, queue_size_ms=200)
    track = rtc.LocalAudioTrack.create_audio_track("avatar_voice", source)
    await room.local_participant.publish_track(
        track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    )
    receiver = DataStreamAudioReceiver(room, sender_identity=agent)
    await receiver.start()
    receiver.on("clear_buffer", source.clear_queue)
    position_s = 0.0
    async for item in receiver:
        if isinstance(item, AudioSegmentEnd):
            await source.wait_for_playout()
            receiver.notify_playback_finished(position_s, False)
            position_s = 0.0
        else:
            await source.capture_frame(item)
            position_s += item.duration


@server.rtc_session(agent_name="avatar-agent")
async def entrypoint(ctx: JobContext) -> None:
    """Greets by the avatar's mouth, then answers."""
    await ctx.connect()
    me = ctx.room.local_participant.identity
    token = (
        api.AccessToken()
        .with_kind("agent")
        .with_identity(AVATAR)
        .with_grants(api.VideoGrants(room_join=True, room=ctx.room.name))
        .with_attributes({"lk.publish_on_behalf": me})
        .to_jwt()
    )
    running = asyncio.create_task(run_avatar(os.environ["LIVEKIT_URL"], token, me))
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        resume_false_interruption=False,
    )
    session.output.audio = DataStreamAudioOutput(
        ctx.room, destination_identity=AVATAR, sample_rate=RATE
    )
    await session.start(agent=Agent(instructions="You are brief."), room=ctx.room)
    session.say("Hello, you can see me now.")
    await running


if __name__ == "__main__":
    cli.run_app(server)
