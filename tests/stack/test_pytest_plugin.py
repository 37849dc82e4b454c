"""The pytest plugin calls an agent, as users run it: in a folder of theirs, by a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from labvoice.runs.run import Run
from labvoice.settings import load_settings
from tests.stack.talking import LISTENS

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci"
WRONG = """\
name: says the wrong thing
agent: agent.py
steps:
  - expect: {greeting: within 10 s, heard: hospital}
  - hang up
model:
  - say: Nothing.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A fresh copy of the example repository."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "clinic"))


LINKED = """\
from labvoice.errors import NoReplyError
from labvoice.speech.conditions import Conditions


def test_a_bad_network(labvoice_call):
    call = labvoice_call("agent.py", link="delay=300ms", conditions=Conditions("street", 15))
    turn = call.ask("Are you open on Saturday?")
    assert turn.reply
    assert turn.voice_to_voice_s >= 0.6
    call.set_link("none")
    assert call.call.link.profile.none
"""
"""A test of a user's."""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a folder, as its user does: without the options of the run around it."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        env={**environment, "LABVOICE_CACHE_DIR": str(load_settings().cache_dir)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@LISTENS
def test_a_repository_tests_its_agents_voice_beside_its_unit_tests(repository: Path) -> None:
    """Scenario, call and unit test pass; each call is a run with its recording."""
    (repository / "wrong.scenario.yaml").write_text(WRONG)

    done = run_pytest(repository, "--junit-xml", "junit.xml", "-p", "no:asyncio")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    lines = done.stdout.splitlines()
    at = lines.index("wrong.scenario.yaml:4: heard: hospital: the pattern does not match")
    assert lines[at + 1].startswith("  heard: ")
    assert "clinic" in lines[at + 1].lower()
    assert lines[at + 2].startswith("  listen: runs/")
    assert "Traceback" not in done.stdout
    junit = ET.fromstring((repository / "junit.xml").read_text())  # noqa: S314  # our own
    cases = {case.get("name"): case for case in junit.iter("testcase")}
    failure = cases["says the wrong thing"].find("failure")
    assert failure is not None
    assert "heard: hospital" in (failure.text or "")
    runs = [Run.load(path) for path in sorted((repository / "runs").glob("*.jsonl"))]
    assert [run.header.kind for run in runs].count("test") == 2
    assert [run.header.kind for run in runs].count("call") == 1
    assert all(len(run.recordings) == 1 for run in runs)


@LISTENS
def test_a_test_calls_over_a_bad_network(repository: Path) -> None:
    """The fixture takes a link and what is around the caller; the run says so."""
    (repository / "tests" / "test_linked.py").write_text(LINKED)

    done = run_pytest(repository, "tests/test_linked.py", "-p", "no:asyncio")

    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (repository / "runs").glob("*.jsonl")
    arm = Run.load(path).header.arms["default"]
    assert (arm["link"], arm["voice"]) == ("none", "noise street at 15 dB")
