"""An agent with `WorkerOptions`, as tutorials have shown it since 1.0, over livekit-plugins-openai.

Its models are OpenAI's: it needs `OPENAI_API_KEY`, and takes `OPENAI_BASE_URL`. With labvoice,
offline and with no key: `labvoice try examples/classic_agent.py`.
"""

from livekit.agents import Agent, AgentSession, JobContext, JobProcess, WorkerOptions, cli
from livekit.plugins import openai, silero


def prewarm(process: JobProcess) -> None:
    """Loads the voice detector before a call comes."""
    process.userdata["vad"] = silero.VAD.load()


async def entrypoint(ctx: JobContext) -> None:
    """Greets, then answers."""
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        vad=ctx.proc.userdata["vad"],
        stt=openai.STT(model="whisper-1"),
        llm=openai.LLM(model="gpt-4.1-mini"),
        tts=openai.TTS(model="tts-1", voice="alloy"),
    )
    agent = Agent(instructions="You book tables at a restaurant. Be brief.")
    await session.start(agent=agent, room=ctx.room)
    await session.say("Hello, this is the Lantern. Would you like a table?")


if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(entrypoint_fnc=entrypoint, prewarm_fnc=prewarm, agent_name="restaurant")
    )
