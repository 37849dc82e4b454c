"""An agent that every livekit-agents 1.x runs, over livekit-plugins-openai."""

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
    await session.start(agent=Agent(instructions="You are brief."), room=ctx.room)
    await session.say("Hello, who is calling?")


if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(
            entrypoint_fnc=entrypoint,
            prewarm_fnc=prewarm,
            agent_name="plain-agent",
            initialize_process_timeout=60,  # a fresh environment is compiled at its first import
        )
    )
