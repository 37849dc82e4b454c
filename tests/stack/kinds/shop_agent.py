"""An agent that greets. Its name and greeting can be set by `AGENT_NAME` and `GREETING`.

What its job's metadata, its room's and its caller's attribute `note` say is its greeting, if any.
"""

import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli

server = AgentServer(load_fnc=lambda _: 0.0)  # tests beside it make the host busy


@server.rtc_session(agent_name=os.environ.get("AGENT_NAME", "shop"))
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Agent(instructions="You sell bread."), room=ctx.room)
    greeting = os.environ.get("GREETING", "Hello, this is the bakery.")
    if ctx.job.metadata:
        caller = await ctx.wait_for_participant()
        greeting = f"{ctx.job.metadata} {ctx.room.metadata} {caller.attributes['note']}"
    await session.say(greeting)


if __name__ == "__main__":
    cli.run_app(server)
