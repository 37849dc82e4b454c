"""What all tests share: no setting of the user's reaches them, and no process outlives them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from labvoice.settings import Settings
from tests.no_clock import clock_reads

_KEPT = {"LABVOICE_CACHE_DIR"}  # building and downloading once per machine is enough
_LONGEST = (
    "test_notebooks.py",
    "test_memory.py",
    "test_scenarios.py",
    "test_targets.py",
    "test_cli.py",
    "test_lab.py",
    "test_call.py",
    "test_supervisor.py",
    "test_deploy.py",
    "test_notebook.py",
    "test_load.py",
    "test_agent_commands.py",
    "test_images.py",
    "test_interrupt.py",
    "test_pytest_plugin.py",
    "test_network.py",
)
"""Files of a minute and more: they begin first, or at the end one process waits for the other's."""
_WITH_LETTA = (
    "test_memory.py",
    "test_memory_faults.py",
    "test_letta_mode.py",
    "test_letta_server.py",
)
"""Files whose tests share one Letta server, whose start takes 20 s: one process has them all."""


class _FilesScheduling(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """The tests of one file run in one process, and so do those of the files with Letta."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "Letta" if file.endswith(_WITH_LETTA) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Distributes the tests over the processes where they are to stay together by file."""
    return _FilesScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Refuses tests that read a clock when they are collected: they run at another time."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":  # one of them is enough
        return (yield)
    with clock_reads() as found:
        collected = yield
    if found:
        raise pytest.UsageError(f"a clock is read at collection: {', '.join(found)}")
    return collected


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuses two tests of one name: pytest-xdist would run one of them. Long files come first."""
    names = Counter(item.nodeid for item in items)
    if doubled := [name for name, count in names.items() if count > 1]:
        raise pytest.UsageError(f"tests of one name: {', '.join(doubled)}")
    if not config.pluginmanager.has_plugin("randomly"):
        ranks = {name: rank for rank, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows why a test was given one more try: an unlucky test is a question, not noise."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"rerun: {report.nodeid} ({report.when})")
        terminalreporter.line(report.longreprtext)


@pytest.fixture(scope="session", autouse=True)
def _no_user_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes the user's keys and addresses, and keeps state in a temporary folder."""
    patch = pytest.MonkeyPatch()
    for info in Settings.model_fields.values():
        name = str(info.validation_alias)
        if name not in _KEPT:
            patch.delenv(name, raising=False)
    patch.setenv("LABVOICE_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(_no_user_settings: None) -> Iterator[None]:
    """Fails the session when a process that it started still runs at its end."""
    yield
    left = [
        process.cmdline()
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _is_ours(process)
    ]
    assert left == []


def _is_ours(process: psutil.Process) -> bool:
    """Whether a process was started by this one, by whatever chain of parents."""
    try:
        if any("resource_tracker" in word for word in process.cmdline()):
            return False  # Python's own; it ends with this process
        return process.is_running() and os.getpid() in {p.pid for p in process.parents()}
    except psutil.Error:
        return False
