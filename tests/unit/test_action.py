"""The GitHub Action: its scripts do what they say, with the runner played by the test."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_markdown import scenario_run

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = ROOT / "examples" / "ci" / ".github" / "workflows" / "voice.yml"
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
SCRIPTS = {step["name"]: step for step in STEPS if "run" in step}

# What it plays is recorded already: `test` copies a run; the other commands are labvoice's own.
LABVOICE = """\
#!/bin/bash
echo "$@" >> "$CALLS"
if [ "$1" != test ]; then exec {python} -m labvoice "$@"; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --out ]; then cp "$RECORDED" "$2"; fi
  shift
done
exit "$TEST_STATUS"
"""
GH = """\
#!/bin/bash
echo "$@" >> "$CALLS"
if [[ "$*" == *--jq* ]]; then echo "$EXISTING"; exit; fi
exit "$GH_STATUS"
"""


class Runner:
    """Runs the scripts of the action's steps, as GitHub's runner does.

    Args:
        folder: Where the repository, the temporary folder and the programs are.
        inputs: The action's inputs that are given.
        variables: Of the environment, for the programs.
    """

    def __init__(
        self, folder: Path, inputs: Mapping[str, str], variables: Mapping[str, str]
    ) -> None:
        self.repository = folder / "repository"
        self._folder = folder
        defaults: dict[str, str] = {
            name: each.get("default", "") for name, each in ACTION["inputs"].items()
        }
        self._known: dict[str, str] = {
            f"inputs.{name}": text for name, text in {**defaults, **inputs}.items()
        }
        self._known["github.event.pull_request.number"] = "7"
        self._known["steps.upload.outputs.artifact-url"] = "https://example.org/artifact"
        for name in ("repository", "temp", "bin"):
            (folder / name).mkdir()
        for name, text in (("labvoice", LABVOICE), ("gh", GH)):
            program = folder / "bin" / name
            program.write_text(text.replace("{python}", sys.executable))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self._variables = {
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
            + os.environ["PATH"],
            "RUNNER_TEMP": str(folder / "temp"),
            "GITHUB_REPOSITORY": "owner/repository",
            "GITHUB_STEP_SUMMARY": str(folder / "page.md"),
            "CALLS": str(folder / "calls"),
            "EXISTING": "",
            "GH_STATUS": "0",
            "TEST_STATUS": "0",
            **variables,
        }

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs a step's script, and keeps its outputs."""
        step, outputs = SCRIPTS[name], self._folder / "outputs"
        outputs.write_text("")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.repository,
            env={
                **self._variables,
                **{key: self._value(text) for key, text in step.get("env", {}).items()},
                "GITHUB_OUTPUT": str(outputs),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for line in outputs.read_text().splitlines():
            key, _, text = line.partition("=")
            self._known[f"steps.{step['id']}.outputs.{key}"] = text
        return done

    def _value(self, text: str) -> str:
        return re.sub(r"\$\{\{ (.+?) \}\}", lambda found: self._known.get(found[1], ""), text)

    def output(self, name: str) -> str:
        """Returns a step's output."""
        return self._known[f"steps.{name}"]

    @property
    def calls(self) -> list[str]:
        """The arguments of each program that was called."""
        found = self._folder / "calls"
        return found.read_text().splitlines() if found.exists() else []

    @property
    def page(self) -> str:
        """The job's page."""
        return (self._folder / "page.md").read_text()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run of a scenario, one of whose calls failed."""
    (tmp_path / "recorded").mkdir()
    scenario_run(tmp_path / "recorded" / "test.jsonl")
    return tmp_path / "recorded" / "test.jsonl"


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_bash(name: str) -> None:
    """No script has an error of syntax, and none has an expression of GitHub's in it."""
    script = SCRIPTS[name]["run"]
    done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert "${{" not in script  # what others write must not become a command
    assert SCRIPTS[name]["shell"] == "bash"


def test_every_expression_names_something_that_is_there() -> None:
    """Inputs and outputs of steps that expressions name exist."""
    text = (ROOT / "action.yml").read_text()
    ids = {step["id"]: step.get("run", "artifact-url=") for step in STEPS if "id" in step}

    assert set(re.findall(r"inputs\.(\w+)", text)) <= set(ACTION["inputs"])
    for step, output in re.findall(r"steps\.(\w+)\.outputs\.([\w-]+)", text):
        assert f"{output}=" in ids[step]


def test_the_example_gives_inputs_that_there_are() -> None:
    """The example's workflow uses this action as it is, with the permissions that it names."""
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    (step,) = [each for each in job["steps"] if "labvoice@" in each.get("uses", "")]

    assert set(step["with"]) <= set(ACTION["inputs"])
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_a_scenario_that_fails_is_reported_and_fails_the_job(
    tmp_path: Path, recorded: Path
) -> None:
    """Run, report and summary are there to be uploaded, and the comment says what failed."""
    runner = Runner(tmp_path, {}, {"RECORDED": str(recorded), "TEST_STATUS": "1"})
    (runner.repository / "tests").mkdir()
    (runner.repository / "tests" / "a.scenario.yaml").write_text("")

    done = runner.run("Call the agent")

    assert done.returncode == 0, done.stdout + done.stderr
    assert runner.calls[0].startswith("test tests/a.scenario.yaml --repeat 3 --out ")
    assert (Path(runner.output("test.outputs.folder")) / "report.html").exists()
    assert runner.run("Summarise").returncode == 0
    assert "1 of 2 calls failed" in runner.page
    assert "(https://example.org/artifact)" in runner.page
    assert runner.run("Comment on the pull request").returncode == 0
    assert "repos/owner/repository/issues/7/comments --field body=@" in runner.calls[-1]
    assert runner.run("Pass or fail").returncode == 1


def test_the_base_is_measured_in_the_same_job(tmp_path: Path, recorded: Path) -> None:
    """A revision is played first; what is not shown to be slower passes; one comment is kept."""
    runner = Runner(
        tmp_path,
        {"agent": "agent.py", "base": "origin/main", "scenarios": "*.yaml"},
        {"RECORDED": str(recorded), "EXISTING": "31"},
    )
    (runner.repository / "a.yaml").write_text("")

    done = runner.run("Call the agent")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "--agent agent.py@origin/main " in runner.calls[0]
    assert "--agent agent.py --repeat 3" in runner.calls[1]
    assert runner.run("Summarise").returncode == 0
    assert "**Against the base run:**" in runner.page
    assert runner.output("summary.outputs.passed") == "true"
    runner.run("Comment on the pull request")
    assert "--method PATCH repos/owner/repository/issues/comments/31 " in runner.calls[-1]
    assert runner.run("Pass or fail").returncode == 0


def test_a_token_that_may_not_comment_is_no_failure(tmp_path: Path, recorded: Path) -> None:
    """The pull request of a fork passes without its comment, with a notice."""
    runner = Runner(tmp_path, {}, {"RECORDED": str(recorded), "GH_STATUS": "1"})
    (runner.repository / "a.scenario.yaml").write_text("")
    runner.run("Call the agent")
    runner.run("Summarise")

    done = runner.run("Comment on the pull request")

    assert done.returncode == 0
    assert "::notice::no comment" in done.stdout


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({}, "no file matches"), ({"scenarios": "*.yaml", "base": "main"}, "needs the input `agent`")],
)
def test_wrong_inputs_are_told_before_any_call(
    tmp_path: Path, inputs: Mapping[str, str], words: str
) -> None:
    """Nothing is started."""
    runner = Runner(tmp_path, inputs, {})
    (runner.repository / "a.yaml").write_text("")

    done = runner.run("Call the agent")

    assert done.returncode == 2
    assert words in done.stdout
    assert runner.calls == []
