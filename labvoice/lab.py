"""Lab: starts the stack, and gives access to calls, benchmarks and widgets."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import importlib
import itertools
import os
import secrets
import shutil
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp
from livekit import api

from labvoice.caller.call import SESSION_MODULE, Call, PastCall, PendingCall
from labvoice.dispatch import Dispatch, Dispatcher, StrategyName, rooms
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.dispatch.strategies import strategy_of
from labvoice.errors import LabvoiceError, UsageError
from labvoice.failover.supervisor import Supervisor
from labvoice.faults import Faults
from labvoice.memory.api import LettaApi
from labvoice.memory.turn_store import DISK_ERRORS, TurnStore
from labvoice.protocol.metadata import JobMetadata, Metadata
from labvoice.protocol.vocabulary import Mark
from labvoice.proxies import loopback_spared
from labvoice.settings import Mode, Settings, load_settings, new_state_dir
from labvoice.speech import engines
from labvoice.speech.utterances import Channel, Utterance, audio_file, load_wav, synthesize
from labvoice.speech.weights import WeightName, require
from labvoice.stack.gateway.server import GatewayServer
from labvoice.stack.letta.server import LettaServer
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.models.check import ModelCheck
from labvoice.stack.models.server import ModelServer
from labvoice.stack.parts import Part, as_html, as_text, part_of
from labvoice.stack.workers.pool import Pool
from labvoice.stack.workers.worker import AGENT_PROGRAM
from labvoice.targets.agent import TargetAgent
from labvoice.targets.bot import Bot
from labvoice.targets.target import BUILT_IN, STOCK_PROGRAMS, Target
from labvoice.targets.worker import REGISTRATION_TIMEOUT_S, TargetWorker, target_environment

if TYPE_CHECKING:
    from labvoice.bench.menu import Bench
    from labvoice.widgets.call import BrowserCall
    from labvoice.widgets.connect import ConnectButton
    from labvoice.widgets.monitor import Monitor

Progress = Callable[[str], None]

_CALLS_WITH_AUDIO = 4
"""Number of recent calls that keep their audio: a minute of it takes 2.9 MB."""


def _import_for_calls() -> None:
    """Imports what the first call would otherwise import on the event loop, for 1 to 2 s."""
    for name in (SESSION_MODULE, "scipy.signal"):
        importlib.import_module(name)


def _strategy_for(agent: TargetAgent, strategy: StrategyName) -> StrategyName:
    """Returns when an agent of a target is dispatched.

    Raises:
        UsageError: It cannot be dispatched so.
    """
    chosen = strategy_of(strategy)
    if agent.bot is not None:
        if chosen.by_server:
            raise UsageError(
                f"the server dispatches no bot, and the strategy {strategy!r} leaves it to it",
                "one of sequential, concurrent, ahead",
            )
    elif not agent.name and not chosen.every_room:
        if strategy != "sequential":
            raise UsageError(
                f"{agent}, and the server alone dispatches it", "leave the strategy out"
            )
        return "automatic"
    return strategy


_running: list[Lab] = []


class Lab:
    """A running stack: LiveKit server, model server, workers, and the way to call them.

    Use it as `async with Lab() as lab:`, or `lab = await Lab().start()` and `await lab.stop()`
    if one cell starts it and another stops it. All its processes end with this one.

    Args:
        workers: How many worker processes to start.
        letta: Whether agents have memory, from the Letta server in the settings or an embedded one,
            which the lab starts without waiting for it.
        fresh: Start the embedded Letta with an empty database that is deleted at the end.
        supervise: Whether lost agents are replaced; see
            :mod:`labvoice.failover.supervisor`.
        settings: All settings; None: read from the environment and `.env`.
        progress: Called with each step's progress message.
        webhook_url: Where the lab's own LiveKit server sends its webhooks.
        model: Whether to start the language model that the settings name; no agent that runs
            elsewhere needs it.
        overrides: Single settings by field name, such as `llm="paced"`.

    Attributes:
        settings: The settings in effect, with the addresses of started parts.
        model_check: Whether the language model answers.
        pool: The workers.
        gateway: Model gateway for agents that are not labvoice's; None until one is started.
        supervisor: Replaces lost agents; None before :meth:`supervise`.
        targets: The foreign workers that :meth:`add_target` has started.
        setup_s: How long each part took to start, in seconds.
        load_before: The host's 1-minute load average before the lab started.
        recent_calls: The last 50 calls, the browser's included, oldest first; only the last few
            keep their audio.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        letta: bool = True,
        fresh: bool = False,
        supervise: bool = True,
        settings: Settings | None = None,
        progress: Progress = lambda _: None,
        webhook_url: str | None = None,
        model: bool = True,
        **overrides: Any,
    ) -> None:
        if settings is not None and overrides:
            raise UsageError(
                "both `settings` and single settings are given", "put all of them into `settings`"
            )
        self.settings = self._asked_for = settings or load_settings(**overrides)
        self.model_check = ModelCheck(self.settings)
        self.pool = Pool()
        self.supervisor: Supervisor | None = None
        self.load_before: float | None = None
        self.setup_s: dict[str, float] = {}
        self.recent_calls: deque[Call | BrowserCall | PastCall] = deque(maxlen=50)
        self._calls: set[Call] = set()
        self._worker_count = workers
        self._speech_fetched: set[WeightName] = set()
        self._wants_letta, self._fresh = letta, fresh
        self._supervise = supervise
        self._progress = progress
        self._webhook_url = webhook_url
        self._wants_model = model
        self._stack = AsyncExitStack()
        self.gateway: GatewayServer | None = None
        self._server: LiveKitServer | None = None
        self._model: ModelServer | None = None
        self._letta: LettaServer | None = None
        self._turns: TurnStore | None = None
        self._dispatcher: Dispatcher | None = None
        self._state_dir: Path | None = None
        self.targets: list[TargetAgent] = []
        self._greets: dict[tuple[str, str, str], bool] = {}
        self._target_numbers = itertools.count(1)

    # -- lifecycle ---------------------------------------------------------------------------

    async def start(self) -> Lab:
        """Starts the stack; on an error everything that was started is stopped.

        Raises:
            LabvoiceError: A part cannot be started; the message names it and shows its log.
        """
        if self.running:
            return self
        self._tell_of_others()
        engines.both(self.settings)  # an unknown engine raises before anything starts
        self._asked_for = self.settings
        self.load_before = os.getloadavg()[0]
        self._state_dir = new_state_dir(self.settings, "labs")
        loading = asyncio.create_task(asyncio.to_thread(_import_for_calls))
        try:
            await self._start_parts(self._state_dir)
            await loading
        except BaseException as error:
            if isinstance(error, Exception):
                self._keep_logs()
            await self.stop()
            raise
        _running.append(self)
        return self

    def _tell_of_others(self) -> None:
        """Warns in a notebook that a re-run cell has left a lab running."""
        if _running and hasattr(builtins, "__IPYTHON__"):
            warnings.warn(
                f"{len(_running)} other lab(s) already run in this kernel and share its processor: "
                "`await labvoice.Lab.stop_all()` stops every one of them",
                stacklevel=3,
            )

    @staticmethod
    async def stop_all() -> None:
        """Stops every lab of this process, also those without a variable."""
        for lab in list(_running):
            await lab.stop()

    async def _start_parts(self, state_dir: Path) -> None:
        async with self._timed("LiveKit server"):
            self._server = await LiveKitServer.start(
                self.settings,
                state_dir=state_dir,
                progress=self._progress,
                webhook_url=self._webhook_url,
            )
            self._stack.push_async_callback(self._server.stop)
        server = self._server
        self._stack.enter_context(loopback_spared(server.url))
        update: dict[str, Any] = {
            "livekit_url": server.url,
            "livekit_api_key": server.api_key,
            "livekit_api_secret": server.api_secret,
        }
        kind = self.settings.resolved_llm
        if kind != "openai" and self._wants_model:
            async with self._timed("model server"):
                self._model = await ModelServer.start(
                    kind, self.settings, state_dir=state_dir, progress=self._progress
                )
                self._stack.push_async_callback(self._model.stop)
            update |= {
                "llm": kind,
                "openai_base_url": self._model.base_url,
                "llm_temperature": self.settings.resolved_temperature,
                "openai_api_key": None,
                "llm_model": self._model.model,
            }
        if self._wants_letta:
            self._letta = await LettaServer.start(
                self.settings, state_dir, fresh=self._fresh, progress=self._progress
            )
            self._stack.push_async_callback(self._letta.stop)
            self._turns = TurnStore(self._letta.turns_path)
            self._stack.push_async_callback(self._turns.close)
            update |= {
                "letta_base_url": self._letta.base_url,
                "letta_api_key": self._letta.api_key,
                "letta_turns_path": self._letta.turns_path,
                "letta_embedded": self._letta.embedded,
            }
        self.settings = self.settings.model_copy(update=update)
        self.model_check = ModelCheck(self.settings)
        self._dispatcher = await self._stack.enter_async_context(
            Dispatcher(
                server.url, server.api_key, server.api_secret, self.pool.statuses, server.log
            )
        )
        self._stack.push_async_callback(self.pool.stop)
        self._stack.push_async_callback(self._stop_supervisor)
        if self._supervise:
            self.supervise()
        if self._worker_count:
            await self._fetch_speech(self.settings)  # not part of the worker's start timeout
            async with self._timed("worker"):
                await self.add_workers(self._worker_count)

    async def _fetch_speech(self, settings: Settings) -> None:
        """Downloads the weights that workers with these settings load.

        Not left to the worker, so that a download shows its progress and damaged weights fail at
        once.
        """
        needed = {name for engine in engines.both(settings) for name in engine.weights}
        missing = sorted(needed - self._speech_fetched)
        if not missing:
            return
        async with self._timed("speech models"):
            for name in missing:
                await asyncio.to_thread(require, name, settings, self._progress)
        self._speech_fetched |= needed

    def supervise(self) -> None:
        """Starts the supervisor, which replaces lost agents, also those of calls that run already.

        Raises:
            LabvoiceError: The lab is not running.
        """
        if self.supervisor is None:
            self.supervisor = Supervisor(
                self.dispatcher,
                self.pool.log,
                local=self.pool,
                lost_after_s=self.settings.failover_after_s,
            )
        self.supervisor.start()

    async def _stop_supervisor(self) -> None:
        if self.supervisor is not None:
            await self.supervisor.stop()

    @asynccontextmanager
    async def _timed(self, part: str) -> AsyncIterator[None]:
        self._progress(f"{part}: starting")
        started_s = time.monotonic()
        yield
        self.setup_s[part] = time.monotonic() - started_s
        self._progress(f"{part}: up after {self.setup_s[part]:.1f} s")

    async def add_workers(
        self,
        count: int = 1,
        *,
        agent_name: str | None = None,
        program: str = AGENT_PROGRAM,
        **overrides: Any,
    ) -> None:
        """Starts more workers.

        Args:
            count: How many.
            agent_name: Agent name to register; None: the settings'; empty: they serve every room.
            program: Module to run.
            overrides: Settings by field name for these workers only.

        Raises:
            ProcessError: A worker ended or did not register in time.
        """
        assert self._state_dir is not None
        if agent_name is not None:
            overrides["agent_name"] = agent_name
        settings = self.settings.model_copy(update=overrides)
        if program == AGENT_PROGRAM:
            await self._fetch_speech(settings)
        await self.pool.add(settings, state_dir=self._state_dir, count=count, program=program)

    async def add_target(
        self,
        target: Target,
        *,
        apart: bool = False,
        timeout_s: float = REGISTRATION_TIMEOUT_S,
    ) -> TargetAgent:
        """Makes an agent ready to be called, and returns what `call(agent_name=…)` takes.

        Somebody else's worker is started as it is, and the lab's gateway serves it the models of
        LiveKit Inference, with no key. A bot is started anew for each call.

        Args:
            target: The agent.
            apart: Give somebody else's worker a LiveKit server of its own, so that it gets no
                room of another agent's: two revisions of one script register under one name.
            timeout_s: How long to wait for the registration of a worker, in seconds.

        Raises:
            LabvoiceError: The lab is not running.
            UsageError: It cannot be started, or needs this lab's own LiveKit server.
            ProcessError: It ended or did not register in time; with its last log lines.
        """
        dispatcher, server, state_dir = self.dispatcher, self._server, self._state_dir
        assert server is not None
        assert state_dir is not None
        if target.kind in BUILT_IN:
            return TargetAgent(target, await self._add_built_in(target), server, dispatcher)
        if target.kind == "named":
            return TargetAgent(target, target.text, server, dispatcher)
        if target.starts_worker and server.log is None:
            raise UsageError(
                "only this lab's own LiveKit server reports when a worker has registered",
                "unset LIVEKIT_URL, or start the worker yourself and name it: `name:NAME`",
            )
        if self.gateway is None:
            await self._fetch_speech(self.settings)
            async with self._timed("gateway"):
                self.gateway = await GatewayServer.start(self.settings, state_dir=state_dir)
                self._stack.push_async_callback(self.gateway.stop)
        place = state_dir / f"target-{next(self._target_numbers)}"
        if target.starts_worker and apart:
            server, dispatcher = await self._server_apart(place)
        environment = target_environment(target, server, self.settings, self.gateway)
        if target.kind == "bot":
            bot = Bot(target, server, dispatcher, environment, place)
            return TargetAgent(target, "", server, dispatcher, bot=bot)
        async with self._timed(f"agent {target}"):
            worker = await TargetWorker.start(
                target, server, environment, state_dir=place, timeout_s=timeout_s
            )
            self._stack.push_async_callback(worker.stop)
        agent = TargetAgent(target, worker.agent_name, server, dispatcher, worker)
        self.targets.append(agent)
        return agent

    async def _add_built_in(self, target: Target) -> str:
        """Starts a worker of an agent that comes with labvoice, and returns its name."""
        own = self.settings.agent_name
        if target.kind == "own" and not target.settings:
            if own not in self.pool.names:
                await self.add_workers()
            return own
        name = f"{own if target.kind == 'own' else target.kind}-{next(self._target_numbers)}"
        program = AGENT_PROGRAM if target.kind == "own" else STOCK_PROGRAMS[target.kind]
        await self.add_workers(program=program, **{"agent_name": name, **target.settings})
        return str(target.settings.get("agent_name", name))

    async def _server_apart(self, state_dir: Path) -> tuple[LiveKitServer, Dispatcher]:
        """Starts one more LiveKit server of ours."""
        async with self._timed("LiveKit server of its own"):
            server = await LiveKitServer.start(
                self.settings.model_copy(update={"livekit_url": None}),
                state_dir=state_dir,
                progress=self._progress,
            )
            self._stack.push_async_callback(server.stop)
        self._stack.enter_context(loopback_spared(server.url))
        dispatcher = await self._stack.enter_async_context(
            Dispatcher(server.url, server.api_key, server.api_secret, log=server.log)
        )
        return server, dispatcher

    async def stop(self) -> None:
        """Ends open calls, stops everything that was started, and removes its logs.

        Safe to call twice. An error in one part does not keep the others from being stopped.
        """
        if self in _running:
            _running.remove(self)
        try:
            await asyncio.gather(*(call.end() for call in self._calls), return_exceptions=True)
        finally:
            try:
                await self._stack.aclose()
            except Exception:
                self._keep_logs()
                raise
            finally:
                self._calls.clear()
                self.targets.clear()
                self._server = self._model = self._letta = self._dispatcher = self.gateway = None
                self._turns = None
                self.supervisor = None
                self.settings = self._asked_for  # another start uses the user's settings
                state_dir, self._state_dir = self._state_dir, None
                if state_dir is not None:
                    await asyncio.to_thread(shutil.rmtree, state_dir, ignore_errors=True)

    def _keep_logs(self) -> None:
        """Keeps the logs for diagnosis."""
        if self._state_dir is not None:
            self._progress(f"the logs are kept in {self._state_dir}")
            self._state_dir = None

    async def __aenter__(self) -> Lab:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):  # not on Ctrl-C
            self._keep_logs()
        await self.stop()

    def __enter__(self) -> NoReturn:
        raise UsageError(
            "Lab is started with `async with`, not `with`", "`async with Lab() as lab`"
        )

    def __exit__(self, *_: object) -> None:
        """Never reached: plain `with` raises."""

    @property
    def running(self) -> bool:
        """Whether the lab is running."""
        return self._dispatcher is not None

    @property
    def supervised(self) -> bool:
        """Whether lost agents are replaced."""
        return self.supervisor is not None and self.supervisor.running

    @property
    def model_ended(self) -> bool:
        """Whether this lab's model server has ended unexpectedly."""
        return self._model is not None and not self._model.process.running

    @property
    def model_server(self) -> ModelServer:
        """The lab's own language model.

        Raises:
            LabvoiceError: The lab runs without one.
        """
        if self._model is None:
            raise LabvoiceError(
                "this lab has no language model of its own",
                '`Lab(llm="script")`, or another of ours',
            )
        return self._model

    @property
    def server_version(self) -> str | None:
        """Version of the LiveKit server; None if it is external."""
        return self._server.version if self._server is not None else None

    # -- use ----------------------------------------------------------------------------

    @functools.cached_property
    def bench(self) -> Bench:
        """The benches: `await lab.bench.connect(trials=…)`, `await lab.bench.turns(…)`."""
        from labvoice import Bench  # lazy: bench is a layer above lab

        return Bench(self)

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher: dispatches agents by name and confirms that they joined.

        Raises:
            LabvoiceError: The lab is not running.
        """
        if self._dispatcher is None:
            raise LabvoiceError(
                "the lab is not running", "`async with Lab() as lab:` or `await lab.start()`"
            )
        return self._dispatcher

    @property
    def has_letta(self) -> bool:
        """Whether the lab runs with a Letta server, which may still be starting."""
        return self._letta is not None

    @property
    def letta(self) -> LettaApi:
        """The Letta server's agents: `await lab.letta.agents()`, `create(…)`, `blocks(…)`, ….

        Raises:
            LabvoiceError: The lab runs without Letta, or Letta is still starting or has failed.
        """
        server = self.letta_server
        if server.embedded and not server.answers:
            raise server.error or LabvoiceError(
                f"Letta does not answer yet; its state is {server.state!r}",
                "`await lab.letta_server.until_up()` waits for it",
            )
        return server.api

    @property
    def letta_server(self) -> LettaServer:
        """The Letta server and its state; `await lab.letta_server.until_up()` waits for it.

        Raises:
            LabvoiceError: The lab runs without Letta.
        """
        if self._letta is None:
            raise LabvoiceError("this lab runs without Letta", "`Lab(letta=True)`")
        return self._letta

    @property
    def faults(self) -> Faults:
        """Fault injection: `lab.faults.kill_job(call)`, …."""
        return Faults(self.pool, self._server, self._model)

    async def memory_backlog(self) -> int | None:
        """Returns how many turns are not yet written to Letta; None without Letta.

        Raises:
            LabvoiceError: The file of these turns cannot be read.
        """
        if self._turns is None:
            return None
        try:
            return (await self._turns.counts()).waiting
        except DISK_ERRORS as error:
            raise LabvoiceError(
                f"the turns not yet written to Letta cannot be read: {error}",
                f"check {self.settings.letta_turns_path} and the free space on its disk",
            ) from None

    async def metadata(
        self, letta_agent: str | None, mode: Mode | None = None
    ) -> JobMetadata | None:
        """Returns a dispatch's metadata, with a Letta agent's name resolved to its id.

        If Letta does not answer within a second, the worker resolves the name.

        Args:
            letta_agent: Id or name of the Letta agent; None for a call without memory.
            mode: How the agent uses Letta; the worker's setting when not given.

        Raises:
            UsageError: There is no such Letta agent, or several.
            LabvoiceError: The lab runs without Letta.
        """
        if letta_agent is None:
            return JobMetadata(mode=mode) if mode else None
        if self.letta_server.answers:
            letta_agent = await self.letta.resolve_at_once(letta_agent)
        return JobMetadata(letta_agent_id=letta_agent, mode=mode)

    async def _metadata_of(
        self, given: Metadata, letta_agent: str | None, mode: Mode | None = None
    ) -> Metadata:
        if given is None:
            return await self.metadata(letta_agent, mode)
        if letta_agent is not None or mode is not None:
            raise UsageError(
                "both metadata and a Letta agent or mode are given",
                "put `letta_agent_id` and `mode` into the metadata, or leave the metadata out",
            )
        return given

    async def dispatch(
        self,
        room: str,
        agent_name: str | None = None,
        *,
        letta_agent: str | None = None,
        metadata: Metadata = None,
        timeout_s: float = DISPATCH_TIMEOUT_S,
    ) -> Dispatch:
        """Puts exactly one agent into a room; see :meth:`labvoice.dispatch.Dispatcher.dispatch`."""
        return await self.dispatcher.dispatch(
            room,
            self.settings.agent_name if agent_name is None else agent_name,
            metadata=await self._metadata_of(metadata, letta_agent),
            timeout_s=timeout_s,
        )

    def new_call(
        self,
        room: str | None = None,
        *,
        agent_name: str | TargetAgent | None = None,
        metadata: Metadata = None,
        strategy: StrategyName = "sequential",
        timeout_s: float = DISPATCH_TIMEOUT_S,
        on_mark: Callable[[Mark], None] | None = None,
    ) -> Call:
        """Returns a call that is not connected yet; :meth:`call` also connects it.

        Args:
            room: Name of the room; a fresh one when not given.
            agent_name: Name to dispatch, or what :meth:`add_target` returned; the settings' when
                not given.
            metadata: What the agent gets to know; the target's when not given.
            strategy: When the agent is dispatched; see
                :data:`labvoice.dispatch.strategies.StrategyName`.
            timeout_s: How long to wait for the agent, in seconds.
            on_mark: Called with each connection mark as it is set.

        Raises:
            LabvoiceError: The lab is not running.
            RoomNameError: The room's name cannot be used.
            UsageError: The target cannot be dispatched so.
        """
        dispatcher, server = self.dispatcher, self._server
        assert server is not None
        agent = agent_name if isinstance(agent_name, TargetAgent) else None
        target = agent.target if agent is not None else Target("own")
        if agent is not None:
            dispatcher, server, agent_name = agent.dispatcher, agent.server, agent.name
            strategy = _strategy_for(agent, strategy)
        elif agent_name is None:
            agent_name = self.settings.agent_name
        assert not isinstance(agent_name, TargetAgent)
        if agent is not None and not agent_name and agent.bot is None and target.metadata:
            raise UsageError(
                f"{agent}, and the server dispatches it with no metadata",
                "give it `room_metadata` or `attributes` in labvoice.toml",
            )
        agent_name = strategy_of(strategy).dispatched_as(agent_name)
        named = [each.settings for each in self.pool.workers if each.agent_name == agent_name]
        if not named and agent_name == self.settings.agent_name:
            named = [self.settings]
        pattern = target.room or "lab-{id}"
        metadata = target.metadata or None if metadata is None else metadata
        key = (agent_name, target.text, repr(metadata))

        def ended(call: Call) -> None:
            self._calls.discard(call)
            if not named and call.greets is not None:
                self._greets[key] = call.greets

        call = Call(
            url=server.url,
            api_key=server.api_key,
            api_secret=server.api_secret,
            dispatcher=dispatcher,
            room=room or pattern.replace("{id}", secrets.token_hex(4)),
            identity=f"caller-{secrets.token_hex(4)}",
            agent_name=agent_name,
            metadata=metadata,
            strategy=strategy,
            timeout_s=timeout_s,
            # Another program's agent may greet or not.
            greets=any(each.greeting for each in named) if named else self._greets.get(key),
            apologises=not named or any(each.apology for each in named),
            on_mark=on_mark,
            attributes=target.attributes,
            room_metadata=target.room_metadata,
            on_end=ended,
            bring=agent.bot.in_room if agent is not None and agent.bot is not None else None,
        )
        self._calls.add(call)
        self.remember(call)
        return call

    def remember(self, call: Call | BrowserCall) -> None:
        """Adds a call to :attr:`recent_calls`; an older one drops its audio."""
        self.recent_calls.append(call)
        if len(self.recent_calls) > _CALLS_WITH_AUDIO:
            old = self.recent_calls[-1 - _CALLS_WITH_AUDIO]
            if isinstance(old, Call):
                figures = PastCall(old.room_name, old.connection_marks, old.turns)
                self.recent_calls[-1 - _CALLS_WITH_AUDIO] = figures

    def call(
        self,
        room: str | None = None,
        *,
        agent_name: str | TargetAgent | None = None,
        letta_agent: str | None = None,
        mode: Mode | None = None,
        metadata: Metadata = None,
        strategy: StrategyName = "sequential",
        timeout_s: float = DISPATCH_TIMEOUT_S,
    ) -> PendingCall:
        """Connects a caller, dispatches the agent and returns when the agent listens.

        `async with lab.call() as call:` ends the call, its agent and its room at the end of the
        block; `call = await lab.call()` ends with `await call.end()` or when the lab stops.

        Args:
            room: As for :meth:`new_call`.
            agent_name: As for :meth:`new_call`.
            letta_agent: Id or name of the Letta agent whose memory the call uses.
            mode: How the agent uses Letta; the settings' when not given.
            metadata: For the user's own agent: any text or dictionary, sent unchanged.
            strategy: As for :meth:`new_call`.
            timeout_s: As for :meth:`new_call`.

        Raises:
            UsageError: There is no such Letta agent, or several; or both metadata and a Letta
                agent or mode are given.
            LabvoiceError: As :meth:`labvoice.caller.call.Call.connect`.
        """

        async def connect() -> Call:
            call = self.new_call(
                room,
                agent_name=agent_name,
                metadata=await self._metadata_of(metadata, letta_agent, mode),
                strategy=strategy,
                timeout_s=timeout_s,
            )
            try:
                return await call.connect()
            except BaseException:
                await call.end()
                raise

        return PendingCall(connect)

    async def end_call(self, call: Call) -> None:
        """Ends a call; same as :meth:`labvoice.caller.call.Call.end`."""
        await call.end()

    async def end_room(self, room: str, agent_name: str, *, gone: str = "") -> None:
        """Ends the agent of a finished call, and deletes the room unless a human is in it.

        Args:
            room: Name of the room.
            agent_name: Of the agent.
            gone: Identity of the caller who hung up.
        """
        with contextlib.suppress(api.TwirpError, aiohttp.ClientError, TimeoutError):
            await rooms.clear(self.dispatcher.api, room, agent_name=agent_name, gone={gone})

    async def wait_idle(self) -> None:
        """Waits until the workers are idle and warm again, as benchmarks do between trials."""
        await self.pool.wait_idle()

    async def utterance(self, what: str | Path, channel: Channel | None = None) -> Utterance:
        """Returns an utterance: synthesised from text, or a recording.

        Args:
            what: A text, or the path of an audio file: an existing file, or one word with an audio
                file's suffix.
            channel: Channel of a stereo recording with the caller's voice; see
                :func:`labvoice.speech.utterances.load_wav`.

        Raises:
            AudioFormatError: The file's format is not supported, or the text has no words.
            UsageError: A channel is given for a text.
            WeightsError: The voice's weights could not be obtained.
        """
        path = what if isinstance(what, Path) else audio_file(what)
        if path is not None:
            return await asyncio.to_thread(load_wav, path, channel)
        if channel is not None:
            raise UsageError("a text has no channels", "give `channel` with a recording only")
        return await asyncio.to_thread(synthesize, str(what), self.settings, self._progress)

    # -- display --------------------------------------------------------------------------

    def connect_button(self) -> ConnectButton:
        """Returns the widget for talking to the agent with a microphone.

        Raises:
            LabvoiceError: The lab is not running.
            UsageError: Called outside a notebook.
        """
        from labvoice import ConnectButton

        return ConnectButton(self)

    def monitor(self) -> Monitor:
        """Returns the widget that monitors servers, workers, rooms, dispatches and turns.

        Raises:
            LabvoiceError: The lab is not running.
            UsageError: Called outside a notebook.
        """
        from labvoice import Monitor

        return Monitor(self)

    def parts(self) -> list[Part]:
        """State, address, process id and memory of every part."""
        found = []
        if self._server is not None:
            found.append(part_of("LiveKit server", self._server.url, self._server.process))
        if self._model is not None:
            name = f"model server ({self._model.kind})"
            found.append(part_of(name, self._model.base_url, self._model.process))
        elif self.running:
            address = self.settings.openai_base_url or "OpenAI"
            found.append(part_of(f"model ({self.settings.llm_model})", address, None))
        if self._letta is not None:
            found.append(Part("Letta", self._letta.state, self._letta.base_url, None, None))
            found += [part_of(p.name, "", p) for p in self._letta.processes]
        found += [
            part_of(f"{worker.process.name} ({worker.agent_name})", worker.url, worker.process)
            for worker in self.pool.workers
        ]
        return found

    def __repr__(self) -> str:
        return as_text("running" if self.running else "stopped", self.parts())

    def _repr_html_(self) -> str:
        return as_html("running" if self.running else "stopped", self.parts())
