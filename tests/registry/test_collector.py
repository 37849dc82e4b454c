"""A run sent to a collector of somebody else's: Jaeger, built from the Go registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import collector
from labvoice.runs.run import Run
from labvoice.traces import send, spans_of
from tests.unit.recorded_runs import turns_run
from tests.unit.test_traces import recorded


@pytest.fixture(scope="module")
def jaeger() -> Path:
    """Jaeger's program; built once on a machine, which takes minutes."""
    return collector.program()


@pytest.mark.registry
@pytest.mark.skipif(shutil.which("go") is None, reason="Jaeger is a program in Go")
async def test_jaeger_has_every_call_as_a_trace(jaeger: Path, tmp_path: Path) -> None:
    """Its API tells all spans, instants, parents, marks and attributes; sent twice as once."""
    (tmp_path / "one").mkdir()
    runs = [
        Run.load(recorded(tmp_path / "one" / "run.jsonl")),
        turns_run(tmp_path / "turns.jsonl", calls=6, turns=3),
    ]
    async with collector.running(jaeger, tmp_path) as there:
        for run in runs:
            for _ in range(2):
                sent = send(run, there.otlp, words=True)
                spans = spans_of(run, words=True)
                traces = await collector.traces_in(there, run.header.run_id, len(run.clicks))
                assert {trace["traceID"] for trace in traces} == set(sent.trace_ids)
                assert collector.differences(traces, spans) == []
        del traces[0]["spans"][0]
        assert "is missing" in collector.differences(traces, spans)[0]
