"""Agents that are not labvoice's, as their authors start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from labvoice.errors import JoinTimeoutError, UsageError
from labvoice.lab import Lab
from labvoice.stack.models.paced_model import REPLY
from labvoice.targets.target import Target

TONE_BOT = Path(__file__).with_name("tone_bot.py")
EXAMPLES = Path(__file__).parents[2] / "examples"


def labvoice_try(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `labvoice try` in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "labvoice", "try", *words, "--llm", "paced", "--json", "try.json"],
        cwd=folder,
        env={**os.environ, "LABVOICE_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.smoke
def test_an_agent_in_the_starters_shape_talks_offline_with_no_key(tmp_path: Path) -> None:
    """Its script is started unmodified, its models by name are the lab's, and it is measured."""
    agent = EXAMPLES / "inference_agent.py"
    done = labvoice_try(
        *(tmp_path, str(agent), "--say", "How long does it take to boil an egg?"),
        *("--greeting-timeout", "2"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "try.json").read_text(encoding="utf-8"))
    assert result["agent_name"] == "inference-agent"
    assert result["outcomes"] == {"ok": 1}
    assert result["stages"]["voice_to_voice"]["n"] == 1
    assert result["stages"]["llm_node_ttft"]["n"] == 1
    assert "job_request" not in result["stages"]  # a foreign worker tells no marks
    assert result["gateway"]["models"]["stt"] == {"deepgram/nova-3": "moonshine-base-en"}
    assert result["gateway"]["models"]["llm"] == {"openai/gpt-4.1-mini": "paced"}
    assert "the agent does not greet" in done.stdout
    assert REPLY in done.stdout
    report = Path(result["report"]).read_text(encoding="utf-8")
    assert "deepgram/nova-3" in report
    assert "moonshine-base-en" in report
    assert len(list((tmp_path / "runs" / "try").glob("*/*.ogg"))) == 1
    assert list((tmp_path / "data" / "labs").iterdir()) == []


def test_a_script_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    """The error shows the script's own words, and nothing is left running."""
    script = tmp_path / "agent.py"
    script.write_text("raise SystemExit('no model today')", encoding="utf-8")
    done = labvoice_try(tmp_path, str(script))
    assert done.returncode == 1
    assert "no model today" in done.stderr
    assert "Traceback" not in done.stderr.split("last log lines")[0]
    assert "hint:" in done.stderr


async def test_a_bot_joins_for_each_call_and_ends_with_it(lab: Lab) -> None:
    """It is started for the room, is called like any agent, and its process is gone afterwards."""
    target = Target.bot(f"{sys.executable} {TONE_BOT} {{url}} {{token}}")
    agent = await lab.add_target(target)
    for _ in range(2):
        async with lab.call(agent_name=agent) as call:
            await call.hear_greeting()
            assert call.marks["dispatch_requested"] < call.marks["agent_visible"]
            assert "greeting_heard" in call.marks
            assert processes_of(call.room_name)
        assert not processes_of(call.room_name)


async def test_a_bot_that_never_joins_is_told_with_its_last_lines(lab: Lab) -> None:
    """One that ends, and one that cannot be started; the room is left as it was found."""
    bot = Target.bot(f"{sys.executable} -c \"raise SystemExit('no voice today')\"")
    agent = await lab.add_target(bot)
    with pytest.raises(JoinTimeoutError, match="no voice today"):
        await lab.call(agent_name=agent)
    missing = await lab.add_target(Target.bot("no-such-program {url}"))
    with pytest.raises(UsageError, match="cannot be started"):
        await lab.call(agent_name=missing)


def processes_of(room: str) -> list[int]:
    """Returns the processes that were started for a room."""
    found = []
    for process in psutil.process_iter(["pid", "environ"]):
        if (process.info["environ"] or {}).get("LIVEKIT_ROOM_NAME") == room:
            found.append(process.pid)
    return found
