"""Makes an agent ready to be called: starts its worker, or prepares its bot."""

from __future__ import annotations

from labvoice.dispatch import Dispatcher
from labvoice.errors import UsageError
from labvoice.settings import Settings
from labvoice.stack.stack import Stack
from labvoice.stack.workers.worker import AGENT_PROGRAM
from labvoice.targets.agent import TargetAgent
from labvoice.targets.bot import Bot
from labvoice.targets.target import BUILT_IN, STOCK_PROGRAMS, Target
from labvoice.targets.worker import REGISTRATION_TIMEOUT_S, TargetWorker, target_environment


async def start_target(
    target: Target,
    stack: Stack,
    settings: Settings,
    dispatcher: Dispatcher,
    *,
    apart: bool = False,
    timeout_s: float = REGISTRATION_TIMEOUT_S,
) -> TargetAgent:
    """Makes an agent ready to be called; the stack stops it at its end.

    Args:
        stack: Has a LiveKit server, and a model if the agent is labvoice's.
        settings: Those of the stack.
        dispatcher: Dispatcher of the stack's LiveKit server.
        apart: Give a foreign worker a LiveKit server of its own.
        timeout_s: How long to wait for the registration of a foreign worker, in seconds.

    Raises:
        UsageError: It cannot be started, or needs a LiveKit server of labvoice's.
        ProcessError: It ended or did not register in time; with its last log lines.
    """
    server = stack.server
    assert server is not None
    if target.kind in BUILT_IN:
        name = await _start_built_in(target, stack, settings)
        return TargetAgent(target, name, server, dispatcher)
    if target.kind == "named":
        return TargetAgent(target, target.text, server, dispatcher)
    if target.starts_worker and server.log is None:
        raise UsageError(
            "only a LiveKit server of labvoice's reports when a worker has registered",
            "unset LIVEKIT_URL, or start the worker yourself and name it: `name:NAME`",
        )
    gateway = await stack.start_gateway(settings)
    folder = stack.state_dir / f"target-{next(stack.numbers)}"
    if target.starts_worker and apart:
        server = await stack.start_server_apart(settings, folder)
        dispatcher = await stack.exits.enter_async_context(
            Dispatcher(server.url, server.api_key, server.api_secret, log=server.log)
        )
    environment = target_environment(target, server, settings, gateway)
    if target.kind == "bot":
        bot = Bot(target, server, dispatcher, environment, folder)
        return TargetAgent(target, "", server, dispatcher, bot=bot)
    async with stack.timed(f"agent {target}"):
        worker = await TargetWorker.start(
            target, server, environment, state_dir=folder, timeout_s=timeout_s
        )
        stack.exits.push_async_callback(worker.stop)
    return TargetAgent(target, worker.agent_name, server, dispatcher, worker)


async def _start_built_in(target: Target, stack: Stack, settings: Settings) -> str:
    """Starts a worker of an agent that comes with labvoice, and returns its name."""
    own = settings.agent_name
    if target.kind == "own" and not target.settings:
        if own not in stack.pool.names:
            await stack.start_workers(settings)
        return own
    name = f"{own if target.kind == 'own' else target.kind}-{next(stack.numbers)}"
    settings = settings.model_copy(update={"agent_name": name, **target.settings})
    await stack.start_workers(settings, program=STOCK_PROGRAMS.get(target.kind, AGENT_PROGRAM))
    return settings.agent_name
