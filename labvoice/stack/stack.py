"""The servers and workers of a lab or of the doctor: started one by one, stopped together."""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from labvoice.errors import LabvoiceError, SettingsError
from labvoice.memory.turn_store import DISK_ERRORS, TurnStore
from labvoice.proxies import loopback_spared
from labvoice.settings import Settings
from labvoice.speech import engines
from labvoice.speech.weights import Progress, WeightName, require
from labvoice.stack.gateway.server import GatewayServer
from labvoice.stack.letta.server import LettaServer
from labvoice.stack.livekit.cluster import Cluster
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.models.server import ModelServer
from labvoice.stack.parts import Part, part_of
from labvoice.stack.workers.pool import Pool
from labvoice.stack.workers.worker import AGENT_PROGRAM


class Stack:
    """What a lab has started; each `start_…` returns the settings with the address of its part.

    Attributes:
        pool: The workers.
        exits: Called at the end, the last one first.
        setup_s: How long each part took to start, in seconds.
        numbers: Numbers for the names of agents.
        server: LiveKit server; None before :meth:`start_server`.
        model: Model server; None if the model is external.
        letta: Letta server; None without Letta.
        turns: The turns not yet written to Letta; None without Letta.
        gateway: Model gateway for agents that are not labvoice's; None until one is needed.
        on_server: Called with each LiveKit server before an agent is given its address.
    """

    def __init__(self, progress: Progress = lambda _: None) -> None:
        self.pool = Pool()
        self.exits = AsyncExitStack()
        self.setup_s: dict[str, float] = {}
        self.numbers = itertools.count(1)
        self.server: LiveKitServer | None = None
        self.model: ModelServer | None = None
        self.letta: LettaServer | None = None
        self.turns: TurnStore | None = None
        self.gateway: GatewayServer | None = None
        self.on_server: Callable[[LiveKitServer], Awaitable[None]] | None = None
        self._progress = progress
        self._state_dir: Path | None = None
        self._speech_fetched: set[WeightName] = set()

    def make_state_dir(self, settings: Settings, kind: str) -> None:
        """Makes the folder for logs, a new one below `data_dir`; :meth:`aclose` removes it.

        Raises:
            SettingsError: `data_dir` cannot be written.
        """
        folder = settings.data_dir / kind / secrets.token_hex(4)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise SettingsError(
                f"{settings.data_dir} cannot be written: {error.strerror}",
                "set LABVOICE_DATA_DIR to a folder of your own",
            ) from None
        self._state_dir = folder

    @property
    def state_dir(self) -> Path:
        """The folder for logs."""
        assert self._state_dir is not None
        return self._state_dir

    def keep_logs(self) -> None:
        """Keeps the logs for diagnosis."""
        if self._state_dir is not None:
            self._progress(f"the logs are kept in {self._state_dir}")
            self._state_dir = None

    @asynccontextmanager
    async def timed(self, part: str) -> AsyncIterator[None]:
        """Reports and records how long a part takes to start."""
        self._progress(f"{part}: starting")
        started_s = time.monotonic()
        yield
        self.setup_s[part] = time.monotonic() - started_s
        self._progress(f"{part}: up after {self.setup_s[part]:.1f} s")

    async def start_server(
        self, settings: Settings, webhook_url: str | None = None, nodes: int = 1
    ) -> Settings:
        """Starts the LiveKit server, or uses the one of the settings.

        Args:
            nodes: Number of servers; more than one share a Redis.

        Raises:
            LabvoiceError: It does not start, cannot be reached or refuses the key.
        """
        async with self.timed("LiveKit server"):
            self.server = await self._livekit(settings, self.state_dir, webhook_url, nodes)
        return self.server.in_settings(settings)

    async def start_server_apart(self, settings: Settings, state_dir: Path) -> LiveKitServer:
        """Starts one more LiveKit server of labvoice's."""
        async with self.timed("LiveKit server of its own"):
            return await self._livekit(settings.model_copy(update={"livekit_url": None}), state_dir)

    async def _livekit(
        self,
        settings: Settings,
        state_dir: Path,
        webhook_url: str | None = None,
        nodes: int = 1,
    ) -> LiveKitServer:
        start: Callable[..., Awaitable[LiveKitServer]] = LiveKitServer.start
        if nodes > 1:
            start = functools.partial(Cluster.start_nodes, count=nodes)
        server = await start(
            settings, state_dir=state_dir, progress=self._progress, webhook_url=webhook_url
        )
        self.exits.push_async_callback(server.stop)
        self.exits.enter_context(loopback_spared(server.url))
        if self.on_server is not None:
            await self.on_server(server)
        return server

    async def start_model(self, settings: Settings) -> Settings:
        """Starts the language model of the settings, unless it is external.

        Raises:
            LabvoiceError: It does not start.
        """
        kind = settings.resolved_llm
        if kind == "openai":
            return settings
        async with self.timed("model server"):
            self.model = await ModelServer.start(
                kind, settings, state_dir=self.state_dir, progress=self._progress
            )
            self.exits.push_async_callback(self.model.stop)
        return settings.model_copy(
            update={
                "llm": kind,
                "openai_base_url": self.model.base_url,
                "llm_temperature": settings.resolved_temperature,
                "openai_api_key": None,
                "llm_model": self.model.model,
            }
        )

    async def start_letta(self, settings: Settings, *, fresh: bool = False) -> Settings:
        """Begins to start Letta, or uses the server of the settings; does not wait for it."""
        self.letta = await LettaServer.start(
            settings, self.state_dir, fresh=fresh, progress=self._progress
        )
        self.exits.push_async_callback(self.letta.stop)
        self.turns = TurnStore(self.letta.turns_path)
        self.exits.push_async_callback(self.turns.close)
        return settings.model_copy(
            update={
                "letta_base_url": self.letta.base_url,
                "letta_api_key": self.letta.api_key,
                "letta_turns_path": self.letta.turns_path,
                "letta_embedded": self.letta.embedded,
            }
        )

    async def start_gateway(self, settings: Settings) -> GatewayServer:
        """Starts the model gateway, once."""
        if self.gateway is None:
            await self.fetch_speech(settings)
            async with self.timed("gateway"):
                self.gateway = await GatewayServer.start(settings, state_dir=self.state_dir)
                self.exits.push_async_callback(self.gateway.stop)
        return self.gateway

    async def start_workers(
        self, settings: Settings, count: int = 1, program: str = AGENT_PROGRAM
    ) -> None:
        """Starts workers; those of the stack's LiveKit server use its address for agents.

        Those of a cluster register with its nodes in turn.

        Raises:
            ProcessError: A worker ended or did not register in time.
        """
        if program == AGENT_PROGRAM:
            await self.fetch_speech(settings)
        urls: Sequence[str | None] = [settings.livekit_url]
        if self.server is not None and settings.livekit_url == self.server.url:
            of_nodes = self.server.entries if isinstance(self.server, Cluster) else []
            urls = of_nodes or [self.server.agent_url]
        of_urls = [urls[number % len(urls)] for number in range(count)]
        await asyncio.gather(
            *(
                self.pool.add(
                    settings.model_copy(update={"livekit_url": url}),
                    state_dir=self.state_dir,
                    count=number,
                    program=program,
                )
                for url, number in collections.Counter(of_urls).items()
            )
        )

    async def fetch_speech(self, settings: Settings) -> None:
        """Downloads the weights that workers with these settings load.

        Not left to the worker, so that a download shows its progress and damaged weights fail at
        once.
        """
        needed = engines.weights_of(settings)
        missing = sorted(needed - self._speech_fetched)
        if not missing:
            return
        async with self.timed("speech models"):
            for name in missing:
                await asyncio.to_thread(require, name, settings, self._progress)
        self._speech_fetched |= needed

    async def memory_backlog(self) -> int | None:
        """Returns how many turns are not yet written to Letta; None without Letta.

        Raises:
            LabvoiceError: The file of these turns cannot be read.
        """
        if self.turns is None or self.letta is None:
            return None
        try:
            return (await self.turns.counts()).waiting
        except DISK_ERRORS as error:
            raise LabvoiceError(
                f"the turns not yet written to Letta cannot be read: {error}",
                f"check {self.letta.turns_path} and the free space on its disk",
            ) from None

    def parts(self, settings: Settings) -> list[Part]:
        """State, address, process id and memory of every part."""
        found = []
        if self.server is not None:
            if isinstance(self.server, Cluster):
                redis = self.server.redis
                found.append(part_of("Redis", redis.address, redis.process))
                found += [
                    part_of(f"LiveKit server {number}", node.url, node.process)
                    for number, node in enumerate(self.server.nodes, 1)
                ]
            else:
                found.append(part_of("LiveKit server", self.server.url, self.server.process))
        if self.model is not None:
            name = f"model server ({self.model.kind})"
            found.append(part_of(name, self.model.base_url, self.model.process))
        elif self.server is not None:
            address = settings.openai_base_url or "OpenAI"
            found.append(part_of(f"model ({settings.llm_model})", address, None))
        if self.letta is not None:
            found.append(Part("Letta", self.letta.state, self.letta.base_url, None, None))
            found += [part_of(p.name, "", p) for p in self.letta.processes]
        found += [
            part_of(f"{worker.process.name} ({worker.agent_name})", worker.url, worker.process)
            for worker in self.pool.workers
        ]
        return found

    async def aclose(self) -> None:
        """Stops everything, in the reverse order, and removes the logs; they stay on an error."""
        try:
            await self.exits.aclose()
        except Exception:
            self.keep_logs()
            raise
        finally:
            self.server = self.model = self.letta = self.turns = self.gateway = None
            state_dir, self._state_dir = self._state_dir, None
            if state_dir is not None:
                await asyncio.to_thread(shutil.rmtree, state_dir, ignore_errors=True)
