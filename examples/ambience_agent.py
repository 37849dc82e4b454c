"""An agent in an office: a second track carries its sounds, and it types while it thinks."""

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    AudioConfig,
    BackgroundAudioPlayer,
    BuiltinAudioClip,
    JobContext,
    cli,
)

server = AgentServer()


@server.rtc_session(agent_name="travel-office")
async def entrypoint(ctx: JobContext) -> None:
    """Greets, then answers, with an office behind it."""
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Agent(instructions="You plan journeys."), room=ctx.room)
    sounds = BackgroundAudioPlayer(
        ambient_sound=AudioConfig(BuiltinAudioClip.OFFICE_AMBIENCE, volume=0.8),
        thinking_sound=AudioConfig(BuiltinAudioClip.KEYBOARD_TYPING, volume=0.8),
    )
    await sounds.start(room=ctx.room, agent_session=session)
    await session.say("Far and Away, where would you like to go?")


if __name__ == "__main__":
    cli.run_app(server)
