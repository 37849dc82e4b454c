"""The pytest plugin: scenario files are tests, and fixtures call an agent.

pytest loads it in every project of an environment that has labvoice: it imports nothing else of
labvoice before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from labvoice.scenarios import SUFFIX

if TYPE_CHECKING:
    from labvoice.scenarios.file import ScenarioFile
    from labvoice.scenarios.sync import BackgroundLab, Labs, SyncCaller

_LABS: Final = pytest.StashKey["Labs"]()
_CALLER: Final = pytest.StashKey["SyncCaller"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("labvoice", "labvoice: calls to a voice agent")
    group.addoption(
        "--labvoice-agent",
        metavar="AGENT",
        help="The agent to call, in place of the scenarios' own: path/agent.py, a command line, "
        "name:NAME at LIVEKIT_URL, or another that `labvoice test --agent` takes.",
    )
    group.addoption(
        "--labvoice-repeat",
        metavar="K",
        type=int,
        default=1,
        help="Calls of each scenario file; all must pass (default: 1).",
    )
    group.addoption(
        "--labvoice-runs",
        metavar="FOLDER",
        default="runs",
        help="Where runs and recordings are kept (default: runs, from pytest's rootdir).",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and checks the number of calls."""
    config.addinivalue_line("markers", f"scenario: a call to a voice agent; every *{SUFFIX} has it")
    if config.getoption("labvoice_repeat") < 1:
        raise pytest.UsageError("--labvoice-repeat: a scenario needs at least one call")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioModule | None:
    """Collects scenario files."""
    if not file_path.name.endswith(SUFFIX):
        return None
    module: ScenarioModule = ScenarioModule.from_parent(parent, path=file_path)
    return module


class ScenarioModule(pytest.File):
    """A scenario file; one of LiveKit's format has several scenarios."""

    def collect(self) -> Iterator[ScenarioItem]:
        """Reads the file.

        Raises:
            CollectError: It is invalid; with file and line.
        """
        try:
            from labvoice.scenarios.lines import ScenarioError
            from labvoice.scenarios.livekit_file import load_all
        except ModuleNotFoundError as error:
            raise self.CollectError(
                f"scenarios need the package {error.name}, which is not installed\n\n"
                'hint: `pip install "labvoice[lab]"`'
            ) from None
        try:
            files = load_all(self.path)
        except ScenarioError as error:
            raise self.CollectError(_shown(self, str(error))) from None
        for file in files:
            yield ScenarioItem.from_parent(self, name=file.scenario.name, scenario=file)


class _FailedError(Exception):
    """A scenario did not pass; its text is all that is shown."""


class ScenarioItem(pytest.Item):
    """A scenario, as a test."""

    def __init__(self, *, scenario: ScenarioFile, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scenario = scenario
        self.add_marker(pytest.mark.scenario)

    def runtest(self) -> None:
        """Plays the scenario."""
        labs = _labs(self.config)
        try:
            result, run = labs.play(self.scenario, self.nodeid)
        finally:
            _add_section(self, labs.told())
        self.user_properties.append(("run", str(run)))
        for attempt in result.attempts:
            if attempt.recording is not None:
                self.user_properties.append(("recording", str(attempt.recording)))
        if not result.passed:
            failed = [each for each in result.attempts if not each.passed]
            heads = [f"call {len(result.attempts)} of {result.repeat}:"] * (result.repeat > 1)
            lines = [line for attempt in failed for line in (*heads, *attempt.words())]
            raise _FailedError("\n".join([*lines, f"run: {run}"]))

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None
    ) -> str | Any:
        """Returns what did not hold; a traceback of unexpected errors only."""
        from labvoice.errors import LabvoiceError

        if isinstance(excinfo.value, _FailedError | LabvoiceError):
            return _shown(self, str(excinfo.value))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Returns where the scenario is."""
        line = self.scenario.lines[0] if self.scenario.lines else 1
        return self.path, line - 1, self.name


@pytest.fixture(scope="session")
def labvoice_lab(request: pytest.FixtureRequest) -> BackgroundLab:
    """A running lab, one for all tests of a process, with an event loop in a thread of its own.

    `labvoice_lab.lab` is the :class:`labvoice.lab.Lab`, `labvoice_lab.run(…)` awaits what it
    returns: `labvoice_lab.run(labvoice_lab.lab.bench.turns(5))`.
    """
    return _labs(request.config).lab()


@pytest.fixture
def labvoice_call(request: pytest.FixtureRequest) -> Iterator[SyncCaller]:
    """Makes calls to an agent.

    `call = labvoice_call("agent.py")` connects, `turn = call.ask("Are you open?")` says something
    and hears the reply; see :class:`labvoice.scenarios.sync.SyncCall`.

    The agent is that of `--labvoice-agent`, else the one given, else that of `labvoice.toml`, else
    labvoice's own. With `model=[Rule(…), …]` its language model is a script; `link="4g"` and
    `conditions=Conditions("street")` are the caller's network and what is around it. The call is
    hung up and recorded as a run at the end of the test.
    """
    caller = _labs(request.config).caller(request.node.nodeid, request.path.parent)
    request.node.stash[_CALLER] = caller
    yield caller
    caller.finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Ends a test's calls before its failure is shown, which says where to listen."""
    try:
        return (yield)
    finally:
        caller = item.stash.get(_CALLER, None)
        if caller is not None:
            runs = caller.finish()
            item.user_properties += [("run", str(run)) for run in runs]
            _add_section(item, [*_labs(item.config).told(), *(f"run: {run}" for run in runs)])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stops the labs."""
    labs = session.config.stash.get(_LABS, None)
    if labs is not None:
        labs.stop()


def _labs(config: pytest.Config) -> Labs:
    if _LABS not in config.stash:
        from labvoice.scenarios.sync import Labs

        config.stash[_LABS] = Labs(
            config.rootpath,
            config.rootpath / config.getoption("labvoice_runs"),
            config.getoption("labvoice_agent"),
            config.getoption("labvoice_repeat"),
        )
    return config.stash[_LABS]


def _shown(node: pytest.Item | pytest.Collector, text: str) -> str:
    """Returns a text with paths as pytest shows them: from rootdir."""
    return text.replace(f"{node.config.rootpath}{os.sep}", "")


def _add_section(item: pytest.Item, lines: list[str]) -> None:
    if lines:
        item.add_report_section("call", "labvoice", _shown(item, "\n".join(lines)))
