"""An agent with a speech-to-speech model; `OPENAI_BASE_URL` says where it is."""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli
from livekit.plugins import openai

server = AgentServer()


@server.rtc_session(agent_name="realtime-agent")
async def entrypoint(ctx: JobContext) -> None:
    """Lets the caller speak first."""
    session: AgentSession[None] = AgentSession(llm=openai.realtime.RealtimeModel(voice="marin"))
    await session.start(agent=Agent(instructions="You are brief."), room=ctx.room)
    await ctx.connect()


if __name__ == "__main__":
    cli.run_app(server)
