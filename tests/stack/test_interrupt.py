"""Turn-taking against the real thing: the own agent, and agents with a planted fault."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from labvoice.bench.arms import Arm
from labvoice.lab import Lab
from labvoice.report.html import write_report
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.talking import LISTENS

AGENT = Path(__file__).parent / "turn_taking_agent.py"


@pytest.fixture(scope="module")
async def agent(lab: Lab) -> TargetAgent:
    """The agent with the faults, whose worker is registered."""
    return await lab.add_target(Target.program(AGENT))


@LISTENS
async def test_the_bench_says_what_the_own_agent_does(lab: Lab, tmp_path: Path) -> None:
    """Each probe has an outcome, its marks and the times at which each side spoke."""
    out = tmp_path / "interrupt.jsonl"
    run = await lab.bench.interrupt(1, probes="question,cough,pause", warmup=0, out=out)
    probes = run.probes.set_index("probe")
    assert set(probes.index) == {"question", "cough", "pause"}
    assert probes.loc["question", "outcome"] == "ok"
    assert bool(probes.loc["question", "over_agent"])
    assert bool(probes.loc["cough", "over_agent"])
    assert probes.loc["question", "sound"] == "synthesised"
    assert run.shares()["R_Y"].n == 1
    assert run.shares()["answers"].k == 1
    assert run.shares()["S_VT"].n == 1
    stages = run.frame.set_index("stage")["duration_s"].dropna()
    assert stages["yield_latency"] > 0
    assert stages["interruption_recovery"] > 0
    assert "voice_to_voice" not in stages
    assert (stages["overlap"] >= 0).all()
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "yields to an interruption" in page


@LISTENS
async def test_a_fault_in_turn_taking_is_found(
    lab: Lab, agent: TargetAgent, tmp_path: Path
) -> None:
    """One agent never yields, one says nothing more: each is told from the other, and why."""
    arms = [
        Arm(
            name.replace(" ", "-"),
            agent_name=dataclasses.replace(
                agent, target=dataclasses.replace(agent.target, metadata=name)
            ),
        )
        for name in ("never yields", "hangs")
    ]
    run = await lab.bench.interrupt(
        1, probes="question", arms=arms, warmup=0, out=tmp_path / "faults.jsonl"
    )
    assert run.shares("never-yields")["R_Y"].k == 0
    assert run.shares("hangs")["R_Y"].k == 1
    assert run.shares("hangs")["hang"].k == 1
    assert run.shares("hangs")["answers"].k == 0
    detail = str(run.outcomes.set_index("arm").query("turn == 0").loc["hangs", "detail"])
    assert "then nothing" in detail
    assert "time" in detail
