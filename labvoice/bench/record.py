"""Records a single call as a run of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labvoice.bench.base import record_sound, run_path
from labvoice.bench.facts import columns, ending_facts, surroundings
from labvoice.bench.memory import record_memory
from labvoice.bench.turns import record_turn
from labvoice.caller.call import Call
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import Settings
from labvoice.targets.target import Target


def record_call(
    settings: Settings,
    call: Call,
    out: Path | None = None,
    *,
    command: str = "",
    target: Target | None = None,
    served: Mapping[str, Any] | None = None,
) -> Run:
    """Writes a call that is over, or under way, as a run; see `lab.bench.record`.

    Args:
        out: The run file; one in `runs/` named by the time when not given.
        command: The command line to show as the way to reproduce the run.
        target: The agent where it is not labvoice's: its engines are then its own.
        served: What the gateway reports: which models answered the agent, and what was refused.
    """
    path = out or run_path("call")
    about = columns(settings) if target is None else {"agent": str(target)}
    link = None if call.media.link is None else call.media.link.profile
    around = surroundings(link, call.conditions)
    arms = {"default": {**about, "strategy": call.strategy, **around}}
    config: dict[str, Any] = {"command": command}
    if served is not None:
        config["models"] = {
            f"{service} {asked}": answering
            for service, models in served["models"].items()
            for asked, answering in models.items()
        }
        config["refused"] = dict.fromkeys(served["refused"], "refused: not served offline")
    with RunWriter(path, kind="call", arms=arms, config=config) as run:
        run.trial(0, call.room_name, "default")
        for mark in call.connection_marks.values():
            run.mark(0, mark)
        record_memory(run, 0, call)
        run.outcome(0, "ok" if call.ready_by else "error", detail=call.failure)
        for turn in call.turns:
            spoken_over = call.interruption(turn).marks if turn.over_agent else {}
            for name, at_s in {**turn.marks, **spoken_over}.items():
                run.mark(0, Mark(name, at_s), turn=turn.number)
            record_turn(run, 0, turn)
            run.outcome(0, turn.outcome, turn=turn.number)
        run.note(0, **ending_facts(call, settings.masked))
        record_sound(run, 0, call, settings.recording)
    return Run.load(path)
