"""What labvoice is compared with: a plain livekit-agents worker, written as its tutorials do.

Connect, then load the models, then start the session; every option of the worker at its default
for production. Only the speech and the model are labvoice's, so that nothing else differs. Run
as `python -m labvoice.bench.stock_agent --port PORT --agent-name NAME`.
"""

from __future__ import annotations

import sys

from livekit.agents import Agent, AgentServer, AgentSession, JobContext
from livekit.plugins import silero

from labvoice.agent.app import report_registration
from labvoice.agent.session import load_llm
from labvoice.agent.worker import run_worker
from labvoice.settings import Settings, load_settings
from labvoice.speech import engines as speech


async def entrypoint(context: JobContext) -> None:
    """Connects, initialises, starts the session, greets."""
    await context.connect()
    settings = load_settings()
    session: AgentSession[None] = AgentSession(
        vad=silero.VAD.load(),
        stt=speech.load_stt(settings),
        llm=load_llm(settings),
        tts=speech.load_tts(settings),
    )
    await session.start(
        agent=Agent(instructions="You are a helpful voice assistant."), room=context.room
    )
    session.say(settings.greeting)


def make_stock_server(settings: Settings, *, port: int) -> AgentServer:
    """Builds the worker; the address of its status and the signs of life are the bench's."""
    server = AgentServer(host="127.0.0.1", port=port)
    server.rtc_session(entrypoint, agent_name=settings.agent_name)
    report_registration(server, settings.agent_name)
    return server


if __name__ == "__main__":
    sys.exit(run_worker(make_stock_server))
