"""Lab: starts the stack, and gives access to calls, benchmarks and widgets."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import dataclasses
import functools
import importlib
import os
import secrets
import warnings
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from labvoice.caller.call import Call
from labvoice.caller.connection import PendingCall
from labvoice.caller.marks import PastCall
from labvoice.caller.recorder import check_recording
from labvoice.caller.reports import SESSION_MODULE
from labvoice.choices import Mode
from labvoice.concurrency import together
from labvoice.dispatch import Dispatch, Dispatcher, StrategyName
from labvoice.dispatch.agents import agents_in_calls
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.dispatch.strategies import strategy_of
from labvoice.errors import LabvoiceError, UsageError
from labvoice.failover.supervisor import Supervisor
from labvoice.faults import Faults
from labvoice.link.client import Link, Relays
from labvoice.link.impairment import LinkProfile
from labvoice.memory.api import LettaApi
from labvoice.protocol.metadata import JobMetadata, Metadata
from labvoice.protocol.tracing import new_traceparent, traced
from labvoice.protocol.vocabulary import Mark
from labvoice.settings import Settings, load_settings, read_settings
from labvoice.speech import engines
from labvoice.speech.mono import Channel
from labvoice.speech.utterances import Utterance, make_utterance
from labvoice.speech.weights import Progress
from labvoice.stack.gateway.server import GatewayServer
from labvoice.stack.letta.server import LettaServer
from labvoice.stack.livekit.cluster import Cluster
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.models.check import ModelCheck
from labvoice.stack.models.server import ModelServer
from labvoice.stack.parts import Part, as_html, as_text
from labvoice.stack.stack import Stack
from labvoice.stack.workers.pool import IDLE_TIMEOUT_S
from labvoice.stack.workers.worker import AGENT_PROGRAM
from labvoice.targets.agent import TargetAgent
from labvoice.targets.start import start_target
from labvoice.targets.target import Target
from labvoice.targets.worker import REGISTRATION_TIMEOUT_S

if TYPE_CHECKING:
    from labvoice.bench.menu import Bench
    from labvoice.widgets.call import BrowserCall
    from labvoice.widgets.connect import ConnectButton
    from labvoice.widgets.monitor import Monitor

_SPANS_S = 10.0
"""How long a traced lab waits, before it stops, for its jobs to end: they send their spans then."""
_CALLS_WITH_AUDIO = 4
"""Number of recent calls that keep their audio: a minute of it takes 2.9 MB."""


def import_for_calls() -> None:
    """Imports what the first call would otherwise import on the event loop, for 1 to 2 s."""
    for name in (SESSION_MODULE, "scipy.signal"):
        importlib.import_module(name)


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
        wire: Date every packet of the calls, by a relay before the caller and one before the
            agents that the lab starts.
        nodes: Number of LiveKit servers that the lab starts; more than one share a Redis, and the
            lab's address leads to those that run.
        overrides: Single settings by field name, such as `llm="paced"`.

    Attributes:
        settings: The settings in effect, with the addresses of started parts.
        model_check: Whether the language model answers.
        supervisor: Replaces lost agents; None before :meth:`supervise`.
        targets: The agents that :meth:`add_target` has made ready.
        stack: The servers and workers that were started.
        pool: The workers.
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
        wire: bool = False,
        nodes: int = 1,
        **overrides: Any,
    ) -> None:
        if settings is not None and overrides:
            raise UsageError(
                "both `settings` and single settings are given", "put all of them into `settings`"
            )
        if nodes < 1 or (nodes > 1 and wire):
            raise UsageError(
                f"a lab {'with `wire` ' if wire else ''}cannot have {nodes} nodes",
                "`wire` dates the packets of one LiveKit server" if wire else "1 or more",
            )
        self.settings = self._asked_for = settings or load_settings(**overrides)
        self.model_check = ModelCheck(self.settings)
        self.supervisor: Supervisor | None = None
        self.load_before: float | None = None
        self.targets: list[TargetAgent] = []
        self.recent_calls: deque[Call | BrowserCall | PastCall] = deque(maxlen=50)
        self._calls: set[Call] = set()
        self._greets: dict[tuple[str, str, str], bool] = {}
        self.stack = Stack(progress)
        self.pool, self.setup_s = self.stack.pool, self.stack.setup_s
        self._worker_count = workers
        self._wants_letta, self._fresh = letta, fresh
        self._supervise = supervise
        self._progress = progress
        self._webhook_url = webhook_url
        self._wants_model = model
        self._node_count = nodes
        self.wire = wire
        self._relays: Relays | None = None
        self._taps: dict[str, Link] = {}
        self._dispatcher: Dispatcher | None = None

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
        self.stack.make_state_dir(self.settings, "labs")
        self._relays = Relays(self.stack.state_dir)
        self.stack.exits.push_async_callback(self._relays.stop)
        self.stack.on_server = self._tap if self.wire else None
        loading = asyncio.create_task(asyncio.to_thread(import_for_calls))
        try:
            await self._start_parts()
            await loading
        except BaseException as error:
            if isinstance(error, Exception):
                self.stack.keep_logs()
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

    async def _start_parts(self) -> None:
        stack = self.stack
        starting = [stack.start_server(self.settings, self._webhook_url, self._node_count)]
        if self._wants_model:
            starting.append(stack.start_model(self.settings))
        self.settings = (await together(*starting))[-1]
        assert stack.server is not None
        self.settings = stack.server.in_settings(self.settings)
        if self._wants_letta:
            self.settings = await stack.start_letta(self.settings, fresh=self._fresh)
        self.model_check = ModelCheck(self.settings)
        server = stack.server
        self._dispatcher = await stack.exits.enter_async_context(
            Dispatcher(
                server.url, server.api_key, server.api_secret, self.pool.statuses, server.log
            )
        )
        stack.exits.push_async_callback(self.pool.stop)
        stack.exits.push_async_callback(self._stop_supervisor)
        if self._supervise:
            self.supervise()
        if self._worker_count:
            await stack.fetch_speech(self.settings)  # not part of the worker's start timeout
            async with stack.timed("worker"):
                await self.add_workers(self._worker_count)

    async def _tap(self, server: LiveKitServer) -> None:
        """Puts a relay before the agents of a server, where packets are dated."""
        assert self._relays is not None
        tap = await self._relays.open(server.http_url, keep_packets=True)
        self._taps[server.url] = tap
        server.agent_url = tap.url

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
            overrides: Settings by field name for these workers only; None overrides nothing.

        Raises:
            SettingsError: There is no such setting, or a value is malformed.
            ProcessError: A worker ended or did not register in time.
        """
        if agent_name is not None:
            overrides["agent_name"] = agent_name
        checked = read_settings(Settings, **overrides)
        given = {name: getattr(checked, name) for name in overrides if overrides[name] is not None}
        settings = self.settings.model_copy(update=given)
        await self.stack.start_workers(settings, count, program)

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
        agent = await start_target(
            target, self.stack, self.settings, self.dispatcher, apart=apart, timeout_s=timeout_s
        )
        self.targets.append(agent)
        return agent

    async def stop(self) -> None:
        """Ends open calls, stops everything that was started, and removes its logs.

        Safe to call twice. An error in one part does not keep the others from being stopped.
        """
        if self in _running:
            _running.remove(self)
        try:
            await asyncio.gather(*(call.end() for call in self._calls), return_exceptions=True)
            if traced() and self.running:
                with contextlib.suppress(LabvoiceError):
                    await self.pool.wait_idle(_SPANS_S)
        finally:
            try:
                await self.stack.aclose()
            finally:
                self._calls.clear()
                self.targets.clear()
                self._dispatcher = self.supervisor = None
                self.settings = self._asked_for  # another start uses the user's settings

    async def __aenter__(self) -> Lab:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):  # not on Ctrl-C
            self.stack.keep_logs()
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
    def model_server(self) -> ModelServer:
        """The lab's own language model.

        Raises:
            LabvoiceError: The lab runs without one.
        """
        if self.stack.model is None:
            raise LabvoiceError(
                "this lab has no language model of its own",
                '`Lab(llm="script")`, or another of ours',
            )
        return self.stack.model

    @property
    def cluster(self) -> Cluster:
        """The LiveKit servers of `Lab(nodes=2)` and what they share.

        Raises:
            LabvoiceError: The lab has none, or one.
        """
        if not isinstance(self.stack.server, Cluster):
            raise LabvoiceError("this lab has no cluster of its own", "`Lab(nodes=2)`")
        return self.stack.server

    @property
    def gateway(self) -> GatewayServer | None:
        """Model gateway for agents that are not labvoice's; None until one is started."""
        return self.stack.gateway

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
        return self.stack.letta is not None

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
        if self.stack.letta is None:
            raise LabvoiceError("this lab runs without Letta", "`Lab(letta=True)`")
        return self.stack.letta

    @property
    def faults(self) -> Faults:
        """Fault injection: `lab.faults.kill_job(call)`, …."""
        return Faults(self.pool, self.stack.server, self.stack.model, self.targets)

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
        link: LinkProfile | str | None = None,
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
            link: The link of the caller's media, such as `4g` or `delay=80ms,loss=3%`; the
                target's when not given.

        Raises:
            LabvoiceError: The lab is not running.
            RoomNameError: The room's name cannot be used.
            UsageError: The target cannot be dispatched so.
        """
        dispatcher, server = self.dispatcher, self.stack.server
        assert server is not None
        if isinstance(agent_name, TargetAgent):
            strategy, agent = agent_name.strategy(strategy), agent_name
        else:
            name = self.settings.agent_name if agent_name is None else agent_name
            agent = TargetAgent(Target("own"), name, server, dispatcher)
        agent = dataclasses.replace(agent, name=strategy_of(strategy).dispatched_as(agent.name))
        known = [each.settings for each in self.pool.workers if each.agent_name == agent.name]
        if not known and agent.name == self.settings.agent_name:
            known = [self.settings]
        target = agent.target
        metadata = target.metadata or None if metadata is None else metadata
        profile = LinkProfile.parse(link) if isinstance(link, str) else link or target.link
        open_link = None
        if profile is not None or self.wire:
            assert self._relays is not None
            open_link = functools.partial(
                self._relays.open, agent.server.http_url, profile, keep_packets=self.wire
            )
        key = (agent.name, repr(target), repr(metadata))
        own = any(each.agent_name == agent.name for each in self.pool.workers)
        if traced() and own and (metadata is None or isinstance(metadata, JobMetadata)):
            linked = {"traceparent": new_traceparent()}
            metadata = (metadata or JobMetadata()).model_copy(update=linked)

        def ended(call: Call) -> None:
            self._calls.discard(call)
            if not known and call.greets is not None:
                self._greets[key] = call.greets

        call = Call(
            url=agent.server.url,
            api_key=agent.server.api_key,
            api_secret=agent.server.api_secret,
            dispatcher=agent.dispatcher,
            room=room or (target.room or "lab-{id}").replace("{id}", secrets.token_hex(4)),
            identity=f"caller-{secrets.token_hex(4)}",
            agent_name=agent.name,
            metadata=metadata,
            strategy=strategy,
            timeout_s=timeout_s,
            # Another program's agent may greet or not.
            greets=any(each.greeting for each in known) if known else self._greets.get(key),
            greeting_timeout_s=target.greeting_timeout_s,
            apologises=not known or any(each.apology for each in known),
            on_mark=on_mark,
            attributes=target.attributes,
            room_metadata=target.room_metadata,
            on_end=ended,
            bring=agent.bot.in_room if agent.bot is not None else None,
            open_link=open_link,
            tap=self._taps.get(agent.server.url),
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
        recording: str | Path | None = None,
        link: LinkProfile | str | None = None,
    ) -> PendingCall:
        """Connects a caller, dispatches the agent and returns when the agent listens.

        `async with lab.call() as call:` ends the call, its agent and its room at the end of the
        block; `call = await lab.call()` ends with `await call.end()` or when the lab stops.

        The other arguments are those of :meth:`new_call`.

        Args:
            letta_agent: Id or name of the Letta agent whose memory the call uses.
            mode: How the agent uses Letta; the settings' when not given.
            metadata: For the user's own agent: any text or dictionary, sent unchanged.
            recording: File that the recording is written to when the call ends, `.ogg` or `.wav`.

        Raises:
            UsageError: There is no such Letta agent, or several; or both metadata and a Letta
                agent or mode are given; or the recording's format is another.
            LabvoiceError: As :meth:`labvoice.caller.call.Call.connect`.
        """
        path = None if recording is None else check_recording(Path(recording))

        async def connect() -> Call:
            call = self.new_call(
                room,
                agent_name=agent_name,
                metadata=await self._metadata_of(metadata, letta_agent, mode),
                strategy=strategy,
                timeout_s=timeout_s,
                link=link,
            )
            call.recording_path = path
            try:
                return await call.connect()
            except BaseException:
                await call.end()
                raise

        return PendingCall(connect)

    async def end_call(self, call: Call) -> None:
        """Ends a call; same as :meth:`labvoice.caller.call.Call.end`."""
        await call.end()

    async def wait_idle(self, timeout_s: float = IDLE_TIMEOUT_S) -> None:
        """Waits until the workers are idle and warm again, as benchmarks do between trials.

        Calls that go on meanwhile are left out, whoever made them: one in an earlier cell of a
        notebook or in a browser, say.

        Raises:
            StageTimeoutError: They were not in time.
        """
        await self.pool.wait_idle(timeout_s, self._agents_in_calls)

    async def _agents_in_calls(self) -> Counter[str | None]:
        try:
            async with self.dispatcher.server_errors():
                return await agents_in_calls(self.dispatcher.api)
        except LabvoiceError:
            return Counter()  # without a server there is no call

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
        return await asyncio.to_thread(make_utterance, what, channel, self.settings, self._progress)

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
        return self.stack.parts(self.settings)

    def __repr__(self) -> str:
        return as_text("running" if self.running else "stopped", self.parts())

    def _repr_html_(self) -> str:
        return as_html("running" if self.running else "stopped", self.parts())
