"""Two agents in one session: the reception hands the caller over to the workshop."""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, function_tool

server = AgentServer()


class Workshop(Agent):
    """Takes repairs."""

    def __init__(self) -> None:
        super().__init__(
            instructions="You take repairs of clocks. Ask what is broken.",
            tts="cartesia/sonic-3",
        )

    async def on_enter(self) -> None:
        """Introduces itself."""
        await self.session.say("This is the workshop, what can I repair for you?")


class Reception(Agent):
    """Takes calls, and hands them over."""

    def __init__(self) -> None:
        super().__init__(instructions="You take calls. Hand repairs over to the workshop.")

    async def on_enter(self) -> None:
        """Greets."""
        await self.session.say("Time and Tide, how can I help?")

    @function_tool
    async def repair(self) -> Agent:
        """Hands the caller over to the workshop, which repairs."""
        return Workshop()


@server.rtc_session(agent_name="clockmaker")
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Reception(), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
