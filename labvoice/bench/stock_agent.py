"""What labvoice is compared with: a plain livekit-agents worker, written as its tutorials do.

Connect, then load the models, then start the session; every option of the worker at its default
for production. Only the speech and the model are labvoice's, so that nothing else differs. Run
as `python -m labvoice.bench.stock_agent --port PORT --agent-name NAME`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from livekit.agents import Agent, AgentServer, AgentSession, JobContext
from livekit.plugins import silero

from labvoice.agent import speech
from labvoice.agent.app import load_llm, report_event
from labvoice.settings import load_settings


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


async def _run(port: int, agent_name: str) -> None:
    server = AgentServer(host="127.0.0.1", port=port)
    server.rtc_session(entrypoint, agent_name=agent_name)
    server.on(
        "worker_registered",
        lambda worker_id, _: report_event("registered", worker_id=worker_id, agent_name=agent_name),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.aclose()))
    await server.run()


def main() -> None:
    """Parses the arguments and runs the worker until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m labvoice.bench.stock_agent")
    parser.add_argument("--port", type=int, required=True, help="health and status on loopback")
    parser.add_argument("--agent-name", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s"
    )
    asyncio.run(_run(arguments.port, arguments.agent_name))


if __name__ == "__main__":
    main()
