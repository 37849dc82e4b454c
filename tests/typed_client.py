"""What a user's own program may write; mypy checks it with the tests, nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from labvoice import Arm, Call, Lab, Run, Settings, Utterance, __version__, compare, errors
from labvoice.caller.turns import Turn
from labvoice.runs.compare import Comparison


async def measure() -> Run:
    """Calls the agent once, then measures turns."""
    settings = Settings(llm="paced")
    async with Lab(settings=settings) as lab:
        assert_type(lab, Lab)
        call = await lab.call()
        assert_type(call, Call)
        utterance = await lab.utterance("Hello.")
        assert_type(utterance, Utterance)
        await call.say(utterance)
        assert_type(await call.hear(), Turn)
        return await lab.bench.turns(trials=3)


def judge(base: Path, new: Path) -> bool:
    """Compares two runs."""
    assert_type(__version__, str)
    try:
        comparison = compare(Run.load(base), Run.load(new))
    except errors.RunFileError:
        return False
    assert_type(comparison, Comparison)
    return comparison.passed


def describe(arm: Arm) -> str:
    """Names an arm."""
    return arm.name
