"""The agent of this repository: it tells a clinic's opening hours and books appointments."""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, function_tool

HOURS = {"saturday": "nine to noon", "sunday": "closed"}

server = AgentServer(load_fnc=lambda _: 0.0)  # takes its calls on a busy machine too


def hours_of(day: str) -> str:
    """Returns the opening hours of a day of the week."""
    return HOURS.get(day.strip().lower(), "eight to six")


class Clinic(Agent):
    """Answers the clinic's phone."""

    def __init__(self) -> None:
        super().__init__(instructions="You answer the phone of a clinic.")

    async def on_enter(self) -> None:
        """Greets."""
        await self.session.say("Hillside clinic, how can I help?")

    @function_tool
    async def opening_hours(self, day: str) -> str:
        """Tells the opening hours.

        Args:
            day: Day of the week.
        """
        return hours_of(day)

    @function_tool
    async def book(self, day: str) -> str:
        """Books an appointment.

        Args:
            day: Day of the week.
        """
        return f"booked for {day}"


@server.rtc_session(agent_name="clinic")
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Clinic(), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
