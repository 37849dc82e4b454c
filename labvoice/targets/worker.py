"""A worker that is not labvoice's: started as its author starts it, against the lab's server."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from labvoice.concurrency import run
from labvoice.errors import ProcessError, UsageError
from labvoice.settings import Settings
from labvoice.stack.gateway.server import GatewayServer
from labvoice.stack.livekit.log import LiveKitLog
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import ManagedProcess, Server
from labvoice.targets.revision import checked_out
from labvoice.targets.target import Target

REGISTRATION_TIMEOUT_S: Final = 120.0
"""Its models may be loaded cold, in several processes, on two busy cores."""

_SIMULATION: Final = "--simulation"
"""A flag of livekit-agents' `start` (livekit/agents/cli/cli.py, 1.8): the worker neither refuses
jobs for the machine's load, which a lab on the same machine raises, nor opens a port for its
health on all interfaces. Nothing else changes."""
_FIND_SIMULATION: Final = """
import importlib.util, pathlib
found = importlib.util.find_spec("livekit.agents")
files = pathlib.Path(found.origin).parent.glob("cli/*.py") if found else []
print(any("simulation: bool" in file.read_text(encoding="utf-8") for file in files))
"""
_ASK_TIMEOUT_S: Final = 20.0

_SECRET_NAME: Final = re.compile("KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET: Final = 6

_NOT_ITS_OWN: Final = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "LIVEKIT_OBSERVABILITY_URL",
    "LIVEKIT_REMOTE_EOT_URL",
    "LIVEKIT_WORKER_TOKEN",
)
"""Variables that would lead the worker away from the lab: livekit-agents' worker sends its own
websocket through a proxy, loopback included, and the others name services of LiveKit Cloud."""


class TargetWorker(Server):
    """A registered worker of another program; created by :meth:`start`.

    Attributes:
        agent_name: Name under which it registered; empty for one that serves every room.
    """

    process: ManagedProcess

    def __init__(self, agent_name: str, process: ManagedProcess, stack: AsyncExitStack) -> None:
        self.agent_name = agent_name
        self.process = process
        self._stack = stack

    @classmethod
    async def start(
        cls,
        target: Target,
        server: LiveKitServer,
        environment: Mapping[str, str],
        *,
        state_dir: Path,
        timeout_s: float = REGISTRATION_TIMEOUT_S,
    ) -> TargetWorker:
        """Starts the target and waits until the lab's server has registered it.

        Args:
            target: A program or a command.
            server: A LiveKit server of labvoice's: its log has the name of each worker.
            timeout_s: How long to wait for the registration, in seconds.

        Raises:
            UsageError: The program cannot be started at all.
            ProcessError: It ended or did not register in time; with its last log lines.
        """
        async with AsyncExitStack() as stack:
            script = None
            if target.revision:
                source = target.folder / Path(target.text).name
                checkout = checked_out(source, target.revision, state_dir / "revision")
                script = await stack.enter_async_context(checkout)
            assert server.log is not None
            before = server.log.workers()
            process = await _start_process(target, script, environment, state_dir)
            stack.push_async_callback(process.stop)
            name = await _registered_name(process, server.log, before, timeout_s)
            return cls(name, process, stack.pop_all())
        raise AssertionError  # nothing above is suppressed

    async def stop(self) -> None:
        """Stops the worker and all that it started; safe to call twice."""
        await self._stack.aclose()


async def _start_process(
    target: Target, script: Path | None, environment: Mapping[str, str], state_dir: Path
) -> ManagedProcess:
    argv = target.argv(script)
    if target.kind == "program" and await asyncio.to_thread(_has_simulation, argv[0]):
        argv.append(_SIMULATION)
    try:
        return await ManagedProcess.start(
            f"the agent {target}",
            argv,
            log_path=state_dir / "target.log",
            env=environment,
            cwd=script.parent if script is not None else target.folder,
            secrets=secrets_of(environment, target.folder),
        )
    except ProcessError as error:
        raise UsageError(error.observed, "check the command and its interpreter") from None


async def _registered_name(
    process: ManagedProcess, log: LiveKitLog, before: Mapping[str, str], timeout_s: float
) -> str:
    """Returns the name under which the process's worker has registered, when it has."""
    found: list[str] = []

    async def registered() -> bool:
        found.extend(name for worker, name in log.workers().items() if worker not in before)
        return bool(found)

    await process.until_ready(
        registered,
        timeout_s=timeout_s,
        hint="a worker of livekit-agents registers when its script is run with `start`; its log "
        "says what failed",
        interval_s=0.1,
    )
    name = found[0]
    if name in before.values():
        raise UsageError(
            f"two agents are registered as {name!r}: {process.name} and one that was there "
            "before, and the server gives a room to either",
            "measure them side by side by `--arm`, which gives each a server of its own, or "
            "give one another name"
            if name
            else "stop the other one: both serve every room",
        )
    return name


def _has_simulation(python: str) -> bool:
    """Whether the livekit-agents of an interpreter knows the flag; it is not imported."""
    return run([python, "-c", _FIND_SIMULATION], _ASK_TIMEOUT_S).stdout.strip() == "True"


def secrets_of(environment: Mapping[str, str], folder: Path) -> set[str]:
    """Returns what a log must not show: values of variables that are named like a secret.

    Args:
        folder: Its working directory, whose `.env` and `.env.local` it may read by itself.
    """
    known = dict(environment)
    for name in (".env", ".env.local"):
        known |= {key: value or "" for key, value in dotenv_values(folder / name).items()}
    return {
        value
        for name, value in known.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)
    }


def target_environment(
    target: Target, server: LiveKitServer, settings: Settings, gateway: GatewayServer
) -> dict[str, str]:
    """Returns the environment of an agent that is not labvoice's.

    It is the user's own, with the lab's server in it. LiveKit Inference is the gateway's, for it
    has no other key; OpenAI's address is the gateway's only where the user has no key for it.

    Args:
        server: The LiveKit server that it serves.
        settings: Those that the gateway was started with: it knows their key and secret.
        gateway: The gateway.
    """
    _, key, secret = settings.livekit
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_ITS_OWN and not re.fullmatch(r"LABVOICE_\w+_KEY", name)
    }
    keyless = "OPENAI_API_KEY" not in environment and "OPENAI_BASE_URL" not in environment
    if keyless or settings.llm == "script":  # no other model stands before a script
        environment["OPENAI_API_KEY"] = gateway.key.get_secret_value()
        environment["OPENAI_BASE_URL"] = gateway.base_url
    environment.setdefault("OMP_NUM_THREADS", "1")
    return {
        **environment,
        "LIVEKIT_URL": server.agent_url,
        "LIVEKIT_API_KEY": server.api_key,
        "LIVEKIT_API_SECRET": server.api_secret.get_secret_value(),
        "LIVEKIT_INFERENCE_URL": gateway.base_url,
        # Set, not left out: `.env.local` of the agent's may bring keys for the cloud.
        "LIVEKIT_INFERENCE_API_KEY": key,
        "LIVEKIT_INFERENCE_API_SECRET": secret.get_secret_value(),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        **target.env,
    }
