"""The instrument's own error beside what it measured, and turns that the machine has upset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labvoice.bench.instrument import keep_calibration, known_error
from labvoice.protocol.vocabulary import INSTRUMENT_ERROR, Mark
from labvoice.report import view
from labvoice.runs.compare import compare
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import Settings
from tests.unit.recorded_runs import HOST

_ERROR_S = 0.02


def _run(
    path: Path,
    *,
    reply_s: float = 1.0,
    upset: frozenset[int] = frozenset(),
    error_s: float | None = None,
    calls: int = 20,
    kind: str = "turns",
) -> Run:
    host = HOST if error_s is None else {**HOST, "instrument_error_s": error_s, "calibration": "c"}
    with RunWriter(path, kind=kind, host_facts=host) as writer:
        for trial in range(calls):
            writer.trial(trial, f"lab-{trial}", "default")
            writer.outcome(trial, "ok")
            took_s = reply_s + 0.0001 * trial + (2.0 if trial in upset else 0.0)
            writer.mark(trial, Mark("user_speech_start", 1.0), turn=0)
            writer.mark(trial, Mark("user_speech_end", 2.0), turn=0)
            writer.mark(trial, Mark("speech_packet_sent", 2.001), turn=0)
            writer.mark(trial, Mark("speech_packet_at_agent", 2.011), turn=0)
            writer.mark(trial, Mark("reply_packet_sent", 2.0 + took_s - 0.06), turn=0)
            writer.mark(trial, Mark("reply_packet_received", 2.0 + took_s - 0.05), turn=0)
            writer.mark(trial, Mark("reply_heard", 2.0 + took_s), turn=0)
            writer.stage(trial, "e2e_latency", took_s - 0.25, turn=0)
            writer.stage(trial, "jitter_buffer", 0.045, turn=0, source="statistics")
            if kind == "calibrate":
                writer.stage(trial, INSTRUMENT_ERROR, _ERROR_S, turn=0, source="reference")
            if trial in upset:
                writer.note(trial, 0, upset="the caller stalled for 700 ms")
            writer.outcome(trial, "ok", turn=0)
    return Run.load(path)


def test_what_a_stall_has_upset_is_counted_and_left_out(tmp_path: Path) -> None:
    """An upset turn is in the frame, flagged, and not in the figures, and the run says so."""
    run = _run(tmp_path / "run.jsonl", upset=frozenset({3, 4}))
    summary = run.stage_summaries["voice_to_voice", "default"]
    assert summary.n == 18
    assert summary.p95_s < 1.1
    assert run.frame.query("stage == 'voice_to_voice'")["upset"].sum() == 2
    assert any("2 of 20 turns were upset by a stall" in words for words in run.warnings)
    assert not any("upset" in words for words in _run(tmp_path / "calm.jsonl").warnings)


def test_where_all_is_upset_the_figures_stand_with_a_warning(tmp_path: Path) -> None:
    """A run on a machine that stalls all the time is not empty, and says what its figures are."""
    run = _run(tmp_path / "run.jsonl", upset=frozenset(range(20)))
    assert run.stage_summaries["voice_to_voice", "default"].n == 20
    assert any("the figures are of the machine" in words for words in run.warnings)


def test_transport_is_taken_apart(tmp_path: Path) -> None:
    """Its parts are the caller's side, the wire, the agent's side, the buffer and the rest."""
    run = _run(tmp_path / "run.jsonl")
    got = {stage: round(s.p50_s, 6) for (stage, _), s in run.stage_summaries.items()}
    assert got["transport_caller"] == 0.001
    assert got["transport_wire"] == 0.02
    assert got["transport_agent"] == pytest.approx(0.179)  # 1 - 0.071 less 0.75
    assert got["jitter_buffer"] == 0.045
    assert got["transport_rest"] == 0.005
    parts = [name for name in got if name.startswith("transport_")]
    assert sum(got[name] for name in (*parts, "jitter_buffer")) == pytest.approx(got["transport"])
    assert got["voice_to_voice_wire"] == pytest.approx(got["voice_to_voice"] - 0.051)


def test_a_difference_below_the_instruments_error_is_none(tmp_path: Path) -> None:
    """However sure the test is of 15 ms, an instrument that errs by 20 has not shown them."""
    base = _run(tmp_path / "base.jsonl", error_s=_ERROR_S)
    near = _run(tmp_path / "near.jsonl", error_s=_ERROR_S, reply_s=1.015)
    far = _run(tmp_path / "far.jsonl", error_s=_ERROR_S, reply_s=1.1)
    unknown = _run(tmp_path / "unknown.jsonl", reply_s=1.015)
    old = _run(tmp_path / "old.jsonl")

    def verdict(one: Run, other: Run) -> str:
        return next(r.verdict for r in compare(one, other).stages if r.stage == "voice_to_voice")

    assert verdict(base, near) == "no difference shown"
    assert verdict(base, far) == "slower"
    assert verdict(old, unknown) == "slower"
    assert "below the instrument's error of 20.0 ms" in repr(compare(base, near))
    assert "The instrument's own error is 20 ms" in view.headline(base)
    assert "The instrument" not in view.headline(old)
    cells = {row.stage: row.cells[-1] for row in view.stage_rows(base)}
    assert (cells["voice_to_voice"], cells["transport"]) == ("± 20", "± 20")
    assert (cells["e2e_latency"], cells["jitter_buffer"]) == ("–", "–")
    assert len(view.stage_rows(old)[0].cells) == len(view.stage_rows(base)[0].cells) - 1


def test_a_calibration_is_kept_for_its_machine(tmp_path: Path) -> None:
    """Later runs on this machine know the error and its run; those on another do not."""
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    assert known_error(settings, HOST) == {}
    run = _run(tmp_path / "run.jsonl", kind="calibrate")
    few = _run(tmp_path / "few.jsonl", kind="calibrate", calls=5)
    assert keep_calibration(settings, few) is None
    assert keep_calibration(settings, run) == pytest.approx(_ERROR_S)
    told = {"instrument_error_s": _ERROR_S, "calibration": run.header.run_id}
    assert known_error(settings, HOST) == told
    assert known_error(settings, {**HOST, "cores": 64}) == {}


def _busy(path: Path, shares: list[float], upset: frozenset[int] = frozenset()) -> Run:
    """A run in whose calls such shares of all cores were busy."""
    path.write_text(
        _run(path.with_name("plain.jsonl"), calls=len(shares), upset=upset).path.read_text()
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = [
        json.dumps({"type": "note", "trial": trial, "turn": None, "facts": {"host_busy": share}})
        for trial, share in enumerate(shares)
    ]
    path.write_text("\n".join([*lines[:-1], *notes, lines[-1]]) + "\n", encoding="utf-8")
    path.with_name("plain.jsonl").unlink()
    return Run.load(path)


@pytest.mark.parametrize(
    ("shares", "upset", "words"),
    [
        ([0.5] * 12, frozenset(), ""),
        ([0.5, 0.95] * 6, frozenset(), "all cores were busy in 6 of 12 calls"),
        ([0.3] * 6 + [0.7] * 6, frozenset(), "its load rose through the run, from 30% to 70%"),
        ([0.5] * 12, frozenset({1, 5, 9}), "3 of 12 turns had late frames"),
    ],
)
def test_where_the_machine_is_the_limit_that_is_said_first(
    tmp_path: Path, shares: list[float], upset: frozenset[int], words: str
) -> None:
    """In the run's text, in the report's lead and in a comparison; a calm machine is not named."""
    run = _busy(tmp_path / "run.jsonl", shares, upset)
    calm = _busy(tmp_path / "calm.jsonl", [0.4] * 12)
    assert words in run.overload
    said = (view.headline(run), compare(calm, run).conclusion, repr(run).split("\n", 1)[1])
    for text in said:
        assert text.lstrip().startswith(("The machine, not", "In the new run: ")) == bool(words)
    assert repr(run).count("The machine, not") == bool(words)
    assert (run.warnings[:1] == [run.overload]) == bool(words)
