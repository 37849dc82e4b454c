"""The command line hands on what was given, and nothing else, to the settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from labvoice.cli import app
from labvoice.errors import LabvoiceError, UsageError
from labvoice.health import doctor
from labvoice.lab import Lab
from labvoice.settings import Settings
from labvoice.stack.processes import free_port

_SERVER = {
    "LIVEKIT_URL": "ws://127.0.0.1:9",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "a-secret-of-32-characters-or-more",
}
COMMANDS = (
    "demo",
    "up",
    "worker",
    "doctor",
    "try name:mine --say Hello",
    "call --say Hello",
    "test plain.scenario.yaml",
    "calibrate",
    "bench connect",
    "bench turns",
    "bench endpointing",
    "bench interrupt",
    "bench failover",
    "bench load --callers 1 --for 5",
    "bench leaks",
)
"""Every command with a language model behind its agent."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Lab]:
    """The labs that commands would have started."""
    labs: list[Lab] = []

    async def start(self: Lab) -> Lab:
        labs.append(self)
        raise LabvoiceError("not started: a test looks at the settings only", "")

    monkeypatch.setattr(Lab, "start", start)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.scenario.yaml").write_text("name: plain\nsteps:\n  - say: Hello\n")
    for name, value in _SERVER.items():
        monkeypatch.setenv(name, value)
    return labs


def test_every_command_with_the_option_is_looked_at() -> None:
    """A new command with `--llm` has to be named in this file."""
    runner = CliRunner()
    listed = [[c.name or c.callback.__name__] for c in app.registered_commands if c.callback]
    bench = next(group.typer_instance for group in app.registered_groups)
    assert bench is not None
    listed += [
        ["bench", c.name or c.callback.__name__] for c in bench.registered_commands if c.callback
    ]
    with_option = {
        " ".join(command)
        for command in listed
        if "--llm" in runner.invoke(app, [*command, "--help"]).output
    }
    assert {name for name in with_option if not any(c.startswith(name) for c in COMMANDS)} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_model_of_the_environment_is_in_force_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch, asked: list[Lab], command: str
) -> None:
    """LABVOICE_LLM counts where `--llm` was not given; `--llm` wins where it was."""
    seen: list[str | None] = []

    async def examine(settings: Settings, *_: object, **__: object) -> list[doctor.Check]:
        seen.append(settings.llm)
        return []

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setenv("LABVOICE_LLM", "paced")
    port = ["--port", str(free_port())] if command == "up" else []
    words = [*command.split(), *port]
    CliRunner().invoke(app, words)
    assert [lab.settings.llm for lab in asked] + seen == ["paced"]
    asked.clear()
    seen.clear()
    if command != "calibrate":  # its reference needs no model
        CliRunner().invoke(app, [*words, "--llm", "small"])
        assert [lab.settings.llm for lab in asked] + seen == ["small"]


@pytest.mark.parametrize("command", COMMANDS[4:])
def test_how_calls_are_recorded_can_be_said_to_every_command_that_makes_them(
    monkeypatch: pytest.MonkeyPatch, asked: list[Lab], command: str
) -> None:
    """LABVOICE_RECORDING counts unless `--recording` or `--no-recording` is given."""
    monkeypatch.setenv("LABVOICE_RECORDING", "wav")
    for words in ([], ["--recording", "ogg"], ["--no-recording"]):
        CliRunner().invoke(app, [*command.split(), *words])
    assert [lab.settings.recording for lab in asked] == ["wav", "ogg", "none"]
    both = CliRunner().invoke(app, [*command.split(), "--recording", "wav", "--no-recording"])
    assert isinstance(both.exception, UsageError)
