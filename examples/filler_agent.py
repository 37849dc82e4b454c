"""An agent that says a filler at once, and the answer when its look-up is done."""

import asyncio

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    ChatContext,
    ChatMessage,
    JobContext,
    cli,
)

LOOK_UP_S = 1.5

server = AgentServer()


class Librarian(Agent):
    """Looks everything up."""

    def __init__(self) -> None:
        super().__init__(instructions="You find books in a public library. Be brief.")

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """Keeps the caller company while the catalogue is searched."""
        self.session.say("Let me check that.", add_to_chat_ctx=False)
        await asyncio.sleep(LOOK_UP_S)


@server.rtc_session(agent_name="library")
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call; the caller speaks first."""
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Librarian(), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
