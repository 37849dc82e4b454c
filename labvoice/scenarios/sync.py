"""Labs and calls for synchronous code: the event loop runs in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from labvoice.bench.base import RunOptions, background
from labvoice.bench.record import record_call
from labvoice.caller.call import Call
from labvoice.caller.turns import Turn
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.lab import Lab
from labvoice.link.impairment import LinkProfile
from labvoice.scenarios.file import ScenarioFile
from labvoice.scenarios.model import Rule
from labvoice.scenarios.runner import CallView
from labvoice.scenarios.suite import ScenarioResult, Suite, agent_of, lab_for, target_near
from labvoice.settings import load_settings
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import Utterance
from labvoice.targets.config import CONFIG_NAME, read_config
from labvoice.targets.target import BUILT_IN, Target

T = TypeVar("T")
WORK_TIMEOUT_S: Final = 3600.0
"""How long anything may take, so that nothing hangs for ever; each part has a limit of its own."""
_STOP_TIMEOUT_S: Final = 60.0
_LONGEST_NAME: Final = 60


class BackgroundLab:
    """A running lab whose event loop runs in a thread; close it by :meth:`stop`.

    Attributes:
        lab: The lab; what it returns to be awaited goes through :meth:`run`.

    Raises:
        LabvoiceError: The lab does not start.
    """

    def __init__(self, make: Callable[[], Lab]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="labvoice", daemon=True)
        self._thread.start()
        try:
            self.lab = make()
            self.run(self.lab.start())
        except BaseException:
            self._close()
            raise

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = WORK_TIMEOUT_S) -> T:
        """Awaits something on the lab's event loop; blocks.

        Args:
            work: A coroutine.
            timeout_s: How long to wait, in seconds; then it is cancelled.

        Raises:
            StageTimeoutError: It took longer.
        """
        name = getattr(work, "__qualname__", "the work")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise StageTimeoutError(name, timeout_s, "it was cancelled") from None
        except BaseException:  # Ctrl-C
            future.cancel()
            raise

    def stop(self) -> None:
        """Stops the lab and its event loop."""
        try:
            self.run(self.lab.stop(), _STOP_TIMEOUT_S)
        finally:
            self._close()

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()


class SyncCall(CallView):
    """A connected call, greeting heard.

    Attributes:
        call: The call, on the lab's event loop.
    """

    def __init__(self, lab: BackgroundLab, call: Call) -> None:
        self._lab = lab
        self.call = call

    def say(self, what: str | Path | Utterance, *, at: float | None = None) -> Turn:
        """Says a text or a recording, and does not wait for the reply.

        Args:
            what: A text, the path of an audio file, or an utterance.
            at: As of :meth:`labvoice.caller.call.Call.say`.
        """
        return self._lab.run(self._say(what, at))

    async def _say(self, what: str | Path | Utterance, at_s: float | None) -> Turn:
        if isinstance(what, Utterance):
            return await self.call.say(what, at=at_s)
        lab, conditions = self._lab.lab, self.call.conditions
        said = await lab.utterance(what)
        if said.text and conditions is not None:
            (said,) = await asyncio.to_thread(conditions.voiced, [said], lab.settings)
        return await self.call.say(said, at=at_s)

    def hear(self) -> Turn:
        """Waits for the end of the reply to what was said last.

        Raises:
            NoReplyError: No voice was heard in time.
            AgentLostError: The agent left.
        """
        return self._lab.run(self.call.hear())

    def ask(self, what: str | Path | Utterance) -> Turn:
        """Says something and hears the reply to its end."""
        self.say(what)
        return self.hear()

    def silence(self, seconds: float) -> None:
        """Waits in silence."""
        self._lab.run(asyncio.sleep(seconds))

    def set_link(self, link: LinkProfile | str) -> None:
        """Changes the link of the caller's media from now on; `none` lets everything pass.

        Raises:
            UsageError: There is no such link, or the call was made without one.
        """
        self._lab.run(self.call.link.set(link))

    def hang_up(self) -> None:
        """Ends the call."""
        self._lab.run(self._lab.lab.end_call(self.call))


class SyncCaller:
    """Makes calls to agents: `call = caller("agent.py")`; made by :meth:`Labs.caller`."""

    def __init__(self, labs: Labs, name: str, folder: Path) -> None:
        self._labs, self._name, self._folder = labs, name, folder
        self._made: list[tuple[BackgroundLab, Target, Call]] = []

    def __call__(
        self,
        agent: str | Target | None = None,
        *,
        model: Sequence[Rule] = (),
        link: LinkProfile | str | None = None,
        conditions: Conditions | None = None,
    ) -> SyncCall:
        """Calls an agent, and hears its greeting.

        Args:
            agent: AGENT, as the command line takes it, or a target; a script is looked for from
                the test's folder too.
            model: The script of the agent's language model; the configured model answers if not
                given.
            link: The link of the caller's media, such as `4g`; see :meth:`SyncCall.set_link`.
            conditions: How the caller sounds, and what is around it.

        Raises:
            UsageError: There is no such link or noise.
            LabvoiceError: The agent cannot be started, or does not join.
        """
        profile = LinkProfile.parse(link) if isinstance(link, str) else link
        target = self._labs.target(agent, self._folder)
        lab = self._labs.lab(scripted=bool(model))
        return lab.run(self._connect(lab, target, model, profile, conditions))

    async def _connect(
        self,
        lab: BackgroundLab,
        target: Target,
        model: Sequence[Rule],
        link: LinkProfile | None,
        conditions: Conditions | None,
    ) -> SyncCall:
        if model:
            await lab.lab.model_server.give_script([asdict(rule) for rule in model])
        agent = await agent_of(lab.lab, target, RunOptions(progress=self._labs.progress))
        call = lab.lab.new_call(agent_name=agent, link=link)
        self._made.append((lab, target, call))
        if conditions is not None:
            around = await background(conditions, lab.lab.settings, self._labs.progress)
            call.sound_like(conditions, around)
        await call.connect()
        await call.hear_greeting()
        for notice in call.notices:
            self._labs.progress(f"notice: {notice}")
        return SyncCall(lab, call)

    def finish(self) -> list[Path]:
        """Ends all calls, and records each as a run; returns the runs' files."""
        made, self._made = self._made, []
        runs = []
        for lab, target, call in made:
            lab.run(lab.lab.end_call(call))
            foreign = None if target.kind in BUILT_IN else target
            run, command = self._labs.run_path(self._name), self._labs.command(self._name)
            with contextlib.suppress(LabvoiceError):  # the test's own result comes first
                record_call(lab.lab.settings, call, run, command=command, target=foreign)
                runs.append(run)
        return runs


class Labs:
    """The labs of a test session, each started when it is needed: one with a scripted model.

    Args:
        root: Where `labvoice.toml` is looked for.
        runs: Folder of the runs.
        agent: AGENT to call in place of any other; None: theirs.
        repeat: Calls of each scenario.
    """

    def __init__(self, root: Path, runs: Path, agent: str | None, repeat: int) -> None:
        self._root, self._runs, self._repeat = root, runs, repeat
        self._agent = agent
        self._labs: dict[bool, BackgroundLab] = {}
        self._told: list[str] = []

    def progress(self, line: str) -> None:
        """Keeps a line for :meth:`told`."""
        self._told.append(line)

    def told(self) -> list[str]:
        """Returns the progress lines since the last call."""
        told, self._told = self._told, []
        return told

    def lab(self, *, scripted: bool = False) -> BackgroundLab:
        """Returns the running lab.

        Raises:
            LabvoiceError: It does not start.
        """
        if scripted not in self._labs:
            model = scripted or self.target().kind != "named"
            self._labs[scripted] = BackgroundLab(
                lambda: lab_for(load_settings(), self.progress, scripted=scripted, model=model)
            )
        return self._labs[scripted]

    def target(self, given: str | Target | None = None, folder: Path | None = None) -> Target:
        """Returns the agent to call.

        Args:
            given: The one that a test names; None: none.
            folder: Where a script is looked for first.

        Raises:
            UsageError: It is invalid.
        """
        if self._agent is not None:
            return Target.parse(self._agent)
        if given is not None:
            return target_near(given, folder) if isinstance(given, str) else given
        return self._configured() or Target.own()

    def _configured(self) -> Target | None:
        path = self._root / CONFIG_NAME
        return read_config(path if path.is_file() else None).agent

    def caller(self, name: str, folder: Path) -> SyncCaller:
        """Returns the maker of a test's calls, in a folder."""
        return SyncCaller(self, name, folder)

    def play(self, file: ScenarioFile, name: str) -> tuple[ScenarioResult, Path]:
        """Plays a scenario until it has its calls or can no longer pass.

        Args:
            file: The scenario.
            name: The test's, for the run.

        Returns:
            The result, and the run's file.

        Raises:
            LabvoiceError: A file that it names is not there, or the agent cannot be started.
        """
        agent = None if self._agent is None else Target.parse(self._agent)
        run = self.run_path(name)
        options = RunOptions(run, self.command(name), self.progress)
        with Suite(
            [file],
            load_settings(),
            options,
            repeat=self._repeat,
            agent=agent,
            default=self._configured(),
        ) as suite:
            lab = self.lab(scripted=bool(file.scenario.model))
            lab.run(suite.play(lab.lab))
            return suite.results[0], run

    def run_path(self, name: str) -> Path:
        """Returns the path of a new run of a test."""
        words = re.sub(r"\W+", "-", name).strip("-")[-_LONGEST_NAME:]
        return self._runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{words}.jsonl"

    def command(self, name: str) -> str:
        """Returns the command line that runs a test again."""
        agent = [] if self._agent is None else ["--labvoice-agent", self._agent]
        return shlex.join(["pytest", name, *agent])

    def stop(self) -> None:
        """Stops all labs."""
        with contextlib.ExitStack() as stack:
            for lab in self._labs.values():
                stack.callback(lab.stop)
            self._labs.clear()
