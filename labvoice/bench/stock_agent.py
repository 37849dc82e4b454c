"""The baseline: a plain livekit-agents worker, written like LiveKit's starter.

The models are loaded in the process's set-up (`setup_fnc`), so that a job finds them; every option
of the worker and of the session is at its default for production, except the load. LiveKit's
default is the CPU of the whole machine, above 0.7 of which a worker takes no job: on a small
machine, shared with the caller, the LiveKit server and the other arms, it would answer nobody. So
it takes every job, as in LiveKit's development mode. Only the speech and the model are labvoice's,
so that nothing else differs. Run as
`python -m labvoice.bench.stock_agent --port PORT --agent-name NAME`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobProcess
from livekit.plugins import silero

from labvoice.agent.app import report_registration
from labvoice.agent.session import load_llm
from labvoice.agent.worker import run_worker
from labvoice.proxies import proxy_for
from labvoice.settings import Settings, load_settings
from labvoice.speech import engines as speech

_LOAD_TIMEOUT_S: Final = 60.0
"""The default, 10 s, is made for the starter's one small model; here the speech is loaded too."""


def no_load() -> float:
    """Returns a load at which a worker takes every job, whatever else the machine does."""
    return 0.0


def load_models() -> dict[str, Any]:
    """Loads what a session takes."""
    settings = load_settings()
    return {
        "vad": silero.VAD.load(),
        "stt": speech.stt_engine(settings).load(settings),
        "tts": speech.tts_engine(settings).load(settings),
        "llm": load_llm(settings),
    }


def prewarm(process: JobProcess) -> None:
    """Loads the models into a job process before a job comes, as the starter does."""
    process.userdata.update(load_models())


async def entrypoint(context: JobContext) -> None:
    """Starts the session with what the process has loaded, connects, greets."""
    await talk(context, AgentSession(**context.proc.userdata))


async def talk(context: JobContext, session: AgentSession[None]) -> None:
    """Starts the session and greets."""
    await session.start(
        agent=Agent(instructions="You are a helpful voice assistant."), room=context.room
    )
    await context.connect()
    greeting = load_settings().greeting
    if greeting:
        session.say(greeting)


def make_server(
    settings: Settings, port: int, job: Callable[[JobContext], Awaitable[None]], **options: Any
) -> AgentServer:
    """Builds a worker; the address of its status and the signs of life are the bench's."""
    server = AgentServer(
        host="127.0.0.1",
        port=port,
        load_fnc=no_load,
        http_proxy=proxy_for(settings.livekit_url or ""),
        **options,
    )
    server.rtc_session(job, agent_name=settings.agent_name)
    report_registration(server, settings.agent_name)
    return server


def make_stock_server(settings: Settings, port: int) -> AgentServer:
    """Builds the stock worker."""
    prewarmed = {"setup_fnc": prewarm, "initialize_process_timeout": _LOAD_TIMEOUT_S}
    return make_server(settings, port, entrypoint, **prewarmed)


if __name__ == "__main__":
    sys.exit(run_worker(make_stock_server))
