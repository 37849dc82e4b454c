"""An agent with the fault that its job's metadata names; without one it does all as it should."""

import asyncio

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    StopResponse,
    UserInputTranscribedEvent,
    cli,
    function_tool,
    inference,
)
from livekit.agents.llm import ChatContext, ChatMessage
from livekit.agents.voice import SpeechHandle

server = AgentServer(load_fnc=lambda _: 0.0)  # tests beside it make the host busy
NAME = "planted-agent"
LATE_S = 1.0
GREETING = "Good morning, this is the surgery."
WRONG = "We sell bicycles and nothing else."


class Clerk(Agent):
    """Moves appointments."""

    def __init__(self, fault: str, ctx: JobContext) -> None:
        super().__init__(instructions="You move appointments.")
        self._fault, self._ctx = fault, ctx
        self._turns = 0

    async def on_enter(self) -> None:
        """Greets, or forgets to."""
        if self._fault != "forgets to greet":
            self.session.say(GREETING)

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """Lets the model answer, but for the fault."""
        self._turns += 1
        said = self.session.history.items
        interrupted = any(isinstance(item, ChatMessage) and item.interrupted for item in said)
        if self._fault == "late":
            await asyncio.sleep(LATE_S)
        if self._fault == "hangs after an interruption" and interrupted:
            raise StopResponse
        if self._fault == "leaves early" and self._turns > 1 and not interrupted:
            self._ctx.shutdown("it leaves early")
            await self._ctx.room.disconnect()
        if self._fault == "says the wrong thing" and "hours" in (new_message.text_content or ""):
            self.session.say(WRONG)
            raise StopResponse

    @function_tool
    async def find_appointment(self, user: str) -> str:
        """Finds an appointment.

        Args:
            user: Whose.
        """
        return "Monday"

    @function_tool
    async def cancel_appointment(self, user: str) -> str:
        """Cancels an appointment.

        Args:
            user: Whose.
        """
        return "Monday"


class WrongToolClerk(Clerk):
    """Calls another tool than the one that is asked for."""

    def __init__(self, fault: str, ctx: JobContext) -> None:
        super().__init__(fault, ctx)

    async def llm_node(self, chat_ctx, tools, model_settings):  # type: ignore[no-untyped-def]
        """Swaps the tools that the model calls."""
        async for chunk in Agent.default.llm_node(self, chat_ctx, tools, model_settings):
            for call in getattr(getattr(chunk, "delta", None), "tool_calls", None) or ():
                call.name = "cancel_appointment"
            yield chunk


@server.rtc_session(agent_name=NAME)
async def entrypoint(ctx: JobContext) -> None:
    """Runs one call."""
    fault = ctx.job.metadata
    await ctx.connect()
    resumes = fault == "resumes after a cough"
    coughing = resumes or fault == "yields to a cough"
    session: AgentSession[None] = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        aec_warmup_duration=None,  # it is deaf to interruptions in its first 3 s of speech else
        turn_handling={
            "turn_detection": inference.TurnDetector(),
            "interruption": {
                "mode": "vad",
                "enabled": fault != "never yields",
                "min_duration": 0.05 if coughing else 0.5,
                "min_words": 0 if coughing else 1,
                "resume_false_interruption": resumes,
                "discard_audio_if_uninterruptible": False,
            },
        },
    )
    if fault == "never yields":

        @session.on("user_input_transcribed")
        def answer_later(event: UserInputTranscribedEvent) -> None:
            """Answers what was said over it once it has ended: LiveKit drops such a turn."""
            speech = session.current_speech

            def answer(_: SpeechHandle) -> None:
                session.generate_reply(user_input=event.transcript)

            if event.is_final and event.transcript.strip() and speech is not None:
                speech.add_done_callback(answer)

    clerk = WrongToolClerk if fault == "calls the wrong tool" else Clerk
    await session.start(agent=clerk(fault, ctx), room=ctx.room)


if __name__ == "__main__":
    cli.run_app(server)
