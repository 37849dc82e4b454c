"""An agent that finds and moves appointments; its scenarios lie beside it."""

import asyncio
import json
import os
from pathlib import Path

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, function_tool

BOOK = Path(os.environ.get("APPOINTMENTS", Path(__file__).with_name("appointments.json")))
"""Where appointments are kept."""

server = AgentServer(load_fnc=lambda _: 0.0)  # takes its calls on a busy machine too


def appointments() -> dict[str, str]:
    """Returns the day of each user's appointment."""
    if not BOOK.is_file():
        return {"Ann": "Monday the second"}
    found: dict[str, str] = json.loads(BOOK.read_text(encoding="utf-8"))
    return found


class Receptionist(Agent):
    """Answers the phone of a surgery."""

    def __init__(self) -> None:
        super().__init__(
            instructions="You are the receptionist of a surgery. You find and move appointments."
        )

    async def on_enter(self) -> None:
        """Greets."""
        await self.session.say("Riverside surgery, how can I help?")

    @function_tool
    async def find_appointment(self, user: str) -> str:
        """Finds a user's appointment.

        Args:
            user: First name of the user.
        """
        return (await asyncio.to_thread(appointments)).get(user, "none")

    @function_tool
    async def move_appointment(self, user: str, day: str) -> str:
        """Moves a user's appointment.

        Args:
            user: First name of the user.
            day: The new day.
        """
        book = json.dumps({**await asyncio.to_thread(appointments), user: day})
        await asyncio.to_thread(BOOK.write_text, book, encoding="utf-8")
        return day

    @function_tool
    async def transfer_to_billing(self) -> Agent:
        """Hands the call over to the billing desk."""
        return Billing()


class Billing(Agent):
    """Answers questions about bills."""

    def __init__(self) -> None:
        super().__init__(instructions="You are the billing desk of a surgery.")

    async def on_enter(self) -> None:
        """Says who speaks."""
        await self.session.say("This is the billing desk.")


@server.rtc_session(agent_name="surgery")
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3"
    )
    await session.start(agent=Receptionist(), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
