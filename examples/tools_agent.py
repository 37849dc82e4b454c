"""An agent with function tools: it looks up what it is asked for."""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, function_tool

HOURS = {"saturday": "nine to one", "sunday": "closed all day"}

server = AgentServer()


class Clerk(Agent):
    """Answers questions about a shop."""

    def __init__(self) -> None:
        super().__init__(instructions="You answer for a bicycle shop. Look up the hours.")

    async def on_enter(self) -> None:
        """Greets."""
        await self.session.say("Spoke and Chain, good morning.")

    @function_tool
    async def opening_hours(self, day: str) -> str:
        """Tells when the shop is open.

        Args:
            day: A day of the week, in English.
        """
        return HOURS.get(day.lower(), "eight to six")


@server.rtc_session(agent_name="bicycle-shop")
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Clerk(), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
