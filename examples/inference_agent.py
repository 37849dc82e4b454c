"""An agent in the shape of LiveKit's starter: models by name, from LiveKit Inference.

Started as its author starts it: `python examples/inference_agent.py start`. With labvoice, offline
and with no key: `labvoice try examples/inference_agent.py`.
"""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, inference

server = AgentServer()


@server.rtc_session(agent_name="inference-agent")
async def entrypoint(ctx: JobContext) -> None:
    """Answers on the phone, and lets the caller speak first."""
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        turn_detection=inference.TurnDetector(),
    )
    agent = Agent(instructions="You answer the phone of a small shop, in one or two sentences.")
    await session.start(agent=agent, room=ctx.room)
    await ctx.connect()


if __name__ == "__main__":
    cli.run_app(server)
