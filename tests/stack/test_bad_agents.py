"""Agents that do not start: one error with the cause, the last log lines and a hint."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from labvoice.errors import JoinTimeoutError, LabvoiceError, ProcessError, UsageError
from labvoice.lab import Lab
from labvoice.targets.target import Target

MARK = "LABVOICE_TEST_AGENT"


def running(mark: str) -> list[int]:
    """Returns the processes that a test has started."""
    found = []
    for process in psutil.process_iter(["pid", "environ"]):
        if (process.info["environ"] or {}).get(MARK) == mark:
            found.append(process.pid)
    return found


async def refused(lab: Lab, target: Target, timeout_s: float = 60.0) -> LabvoiceError:
    """Returns the error with which an agent is not made ready; nothing of it runs afterwards."""
    with pytest.raises(LabvoiceError) as caught:
        await lab.add_target(target, timeout_s=timeout_s)
    assert caught.value.hint
    assert running(target.env.get(MARK, "?")) == []
    return caught.value


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("this is no python", ("ended with status 1", "SyntaxError")),
        ("import no_such_module", ("ended with status 1", "ModuleNotFoundError")),
        ("raise SystemExit('no model today')", ("ended with status 1", "no model today")),
        ("import time; print('waiting', flush=True); time.sleep(600)", ("not ready", "waiting")),
    ],
)
async def test_a_script_that_never_registers_is_told_with_its_last_lines(
    lab: Lab, tmp_path: Path, source: str, words: tuple[str, ...]
) -> None:
    """It does not parse, lacks a module, exits, or hangs."""
    script = tmp_path / "agent.py"
    script.write_text(source, encoding="utf-8")
    error = await refused(lab, Target.program(script, env={MARK: str(tmp_path)}), timeout_s=5)
    assert isinstance(error, ProcessError)
    for each in words:
        assert each in str(error)


async def test_no_secret_of_an_agent_is_shown(lab: Lab, tmp_path: Path) -> None:
    """Keys of its environment and of the `.env` beside it are masked in its last log lines."""
    (tmp_path / ".env").write_text("BANK_PASSWORD=from-dot-env-9\n", encoding="utf-8")
    script = tmp_path / "agent.py"
    script.write_text(
        "import os, sys\n"
        "print('it says', dict(os.environ), open('.env').read())\n"
        "sys.exit('and ends')\n",
        encoding="utf-8",
    )
    env = {MARK: str(tmp_path), "MODEL_API_KEY": "from-environment-7"}
    error = str(await refused(lab, Target.program(script, env=env)))
    assert "it says" in error
    assert "and ends" in error
    assert lab.settings.livekit_api_secret
    for secret in (
        "from-dot-env-9",
        "from-environment-7",
        lab.settings.livekit_api_secret.get_secret_value(),
    ):
        assert secret not in error


async def test_what_is_missing_is_named_before_anything_starts(lab: Lab, tmp_path: Path) -> None:
    """The interpreter, the program, the repository or the revision."""
    script = tmp_path / "agent.py"
    script.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="there is no interpreter"):
        Target.program(script, python=tmp_path / "bin" / "python")
    error = await refused(lab, Target.command("no-such-program start"))
    assert "no-such-program" in str(error)
    error = await refused(lab, Target.program(script, revision="main"))
    assert "is in no repository" in str(error)
    here = Target.program(Path(__file__), revision="no-such-revision")
    assert "there is no revision 'no-such-revision'" in str(await refused(lab, here))


async def test_a_bot_that_stays_away_is_told_with_its_last_lines(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is ended when its time is over."""
    monkeypatch.setattr("labvoice.targets.bot.JOIN_TIMEOUT_S", 2.0)
    waits = "import time; print('no network', flush=True); time.sleep(600)"
    bot = Target.bot(f'{sys.executable} -c "{waits}"', env={MARK: str(tmp_path)})
    agent = await lab.add_target(bot)
    with pytest.raises(JoinTimeoutError, match="no network") as caught:
        await lab.call(agent_name=agent, timeout_s=2)
    assert "{token}" in caught.value.hint
    assert running(str(tmp_path)) == []
