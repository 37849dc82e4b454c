"""An agent with a fault in its turn-taking, which its job's metadata names.

`never yields`: it is never interrupted. `hangs`: it takes only the first turn; what is said after
that interrupts it, and is not answered.
"""

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    StopResponse,
    cli,
    inference,
)
from livekit.agents.llm import ChatContext, ChatMessage

server = AgentServer(load_fnc=lambda _: 0.0)  # tests beside it make the host busy
NAME = "turn-taking-agent"


class Clerk(Agent):
    """Answers; one that hangs answers once."""

    def __init__(self, hangs: bool) -> None:
        super().__init__(instructions="You explain things.")
        self._hangs = hangs
        self._turns = 0

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """Lets the model answer, or nobody."""
        self._turns += 1
        if self._hangs and self._turns > 1:
            raise StopResponse


@server.rtc_session(agent_name=NAME)
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        turn_handling={
            "turn_detection": inference.TurnDetector(),
            "interruption": {"enabled": ctx.job.metadata != "never yields"},
        },
    )
    await session.start(agent=Clerk(ctx.job.metadata == "hangs"), room=ctx.room)
    session.say("Hello, what shall I explain?")


if __name__ == "__main__":
    cli.run_app(server)
