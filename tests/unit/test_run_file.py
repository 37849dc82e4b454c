"""The run file: what is written is what is read, and a crash or a failure loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import Mark
from labvoice.report.view import connection_rows
from labvoice.runs import host, reader
from labvoice.runs.placement import measured_stages
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import HOST, connect_run, turns_run


def writer_of(path: Path) -> RunWriter:
    """Begins a run with one trial."""
    writer = RunWriter(path, kind="connect", host_facts=HOST)
    writer.trial(1, "room-1", "default")
    return writer


def test_stages_are_the_time_between_their_marks(tmp_path: Path) -> None:
    """A stage lasts from its first mark to its second and starts so long after the click."""
    with writer_of(tmp_path / "run.jsonl") as writer:
        for mark, at_s in (
            ("click", 50.0),
            ("dispatch_requested", 50.25),
            ("dispatch_acknowledged", 50.5),
            ("agent_listening", 51.0),
        ):
            writer.mark(1, Mark(mark, at_s))
        writer.outcome(1, "ok")
    frame = Run.load(tmp_path / "run.jsonl").frame.set_index("stage")
    assert dict(frame["start_s"]) == {"dispatch": 0.25, "ready": 0.25, "connection": 0.0}
    assert dict(frame["duration_s"]) == {"dispatch": 0.25, "ready": 0.75, "connection": 1.0}


def test_ready_ends_with_audio_where_the_agent_tells_no_state(tmp_path: Path) -> None:
    """`ready_by` says so; one that was never ready has neither figure nor mark."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="connect", host_facts=HOST) as writer:
        for trial, ready_by in enumerate(("agent_listening", "agent_audio_subscribed", None)):
            writer.trial(trial, f"room-{trial}", "default")
            writer.mark(trial, Mark("click", 1.0))
            writer.mark(trial, Mark("dispatch_requested", 1.25))
            writer.mark(trial, Mark("agent_audio_subscribed", 1.5))
            if ready_by == "agent_listening":
                writer.mark(trial, Mark("agent_listening", 2.0))
            if ready_by is not None:
                writer.note(trial, ready_by=ready_by)
            writer.outcome(trial, "ok" if ready_by else "join_timeout")
    run = Run.load(path)
    frame = run.frame.set_index(["trial", "stage"])
    assert list(frame["duration_s"].xs("ready", level="stage")) == pytest.approx(
        [0.75, 0.25, np.nan], nan_ok=True
    )
    assert list(frame["duration_s"].xs("connection", level="stage")) == pytest.approx(
        [1.0, 0.5, np.nan], nan_ok=True
    )
    of_trial = frame["ready_by"].groupby(level="trial").first()
    assert list(of_trial[:2]) == ["agent_listening", "agent_audio_subscribed"]
    assert frame["ready_by"].xs(2, level="trial").isna().all()
    assert any("tells no state" in words for words in run.warnings)


def test_a_reply_into_the_callers_turn_has_no_latency(tmp_path: Path) -> None:
    """Where the reply began before the caller had finished, no negative figure is computed."""
    with writer_of(tmp_path / "run.jsonl") as writer:
        for turn, heard_s in ((0, 1.5), (1, 2.5)):
            writer.mark(1, Mark("user_speech_start", 1.0), turn=turn)
            writer.mark(1, Mark("user_speech_end", 2.0), turn=turn)
            writer.mark(1, Mark("reply_heard", heard_s), turn=turn)
            writer.stage(1, "e2e_latency", 0.25, turn=turn)
            writer.outcome(1, "ok" if turn else "interrupted", turn=turn)
        writer.outcome(1, "ok")
    frame = Run.load(tmp_path / "run.jsonl").frame.query("turn >= 0")
    lasts = frame.set_index(["turn", "stage"])["duration_s"]
    assert lasts[1, "voice_to_voice"] == 0.5
    assert lasts[1, "transport"] == 0.25
    assert np.isnan(lasts[0, "voice_to_voice"])
    assert np.isnan(lasts[0, "transport"])


def test_the_answer_after_a_filler_is_a_stage_of_its_own(tmp_path: Path) -> None:
    """LiveKit's figure of the answer is held against the answer, that of the filler against it."""
    with writer_of(tmp_path / "run.jsonl") as writer:
        for turn, e2e_s in ((0, 2.5), (1, 0.375), (2, 0.375)):
            writer.mark(1, Mark("user_speech_start", 1.0), turn=turn)
            writer.mark(1, Mark("user_speech_end", 2.0), turn=turn)
            writer.mark(1, Mark("reply_heard", 2.5), turn=turn)
            if turn < 2:
                writer.mark(1, Mark("answer_heard", 5.0), turn=turn)
            writer.stage(1, "e2e_latency", e2e_s, turn=turn)
            writer.outcome(1, "ok", turn=turn)
        writer.outcome(1, "ok")
    frame = Run.load(tmp_path / "run.jsonl").frame.query("turn >= 0")
    assert frame["plausible"].all()
    lasts = frame.set_index(["turn", "stage"])["duration_s"]
    assert lasts[:, "voice_to_voice"].tolist() == [0.5, 0.5, 0.5]
    assert lasts[:, "answer"].tolist() == pytest.approx([3.0, 3.0, np.nan], nan_ok=True)
    assert lasts[:, "transport"].tolist() == [0.5, 0.125, 0.125]


def test_frame_has_the_columns_of_the_design_and_of_the_configuration(tmp_path: Path) -> None:
    """The frame is long and tidy, and each row carries its arm's configuration."""
    arms = {"a": {"strategy": "sequential"}, "b": {"strategy": "ahead"}}
    frame = connect_run(tmp_path / "run.jsonl", trials=4, arms=arms).frame
    assert " ".join(frame.columns) == (
        "run_id trial room turn stage start_s duration_s outcome arm warmup plausible upset unit "
        "round said ready_by strategy"
    )
    by_arm = frame.groupby("arm")["strategy"].unique()
    assert {arm: list(values) for arm, values in by_arm.items()} == {
        "a": ["sequential"],
        "b": ["ahead"],
    }


def test_transport_is_what_livekit_does_not_explain(tmp_path: Path) -> None:
    """In every turn, transport and e2e_latency add up to voice_to_voice."""
    frame = turns_run(tmp_path / "run.jsonl").frame
    wide = frame[frame["turn"].notna()].pivot_table(
        index=["trial", "turn"], columns="stage", values="duration_s"
    )
    assert len(wide) == 20
    assert (wide["transport"] + wide["e2e_latency"]).to_numpy() == pytest.approx(
        wide["voice_to_voice"].to_numpy()
    )


def test_failed_trials_stay_in_the_data(tmp_path: Path) -> None:
    """A failed trial has its rows, with its outcome and without durations it never reached."""
    run = connect_run(tmp_path / "run.jsonl", trials=5, failures={3: "join_timeout"})
    rows = run.frame[run.frame["trial"] == 3].set_index("stage")
    assert set(rows["outcome"]) == {"join_timeout"}
    assert rows.loc[["dispatch", "join", "connection"], "duration_s"].isna().all()
    assert dict(run.summary().loc["join"])["n"] == 4
    assert dict(run.summary().loc["join"])["failed"] == 1
    assert run.to_json()["outcomes"] == {"ok": 4, "join_timeout": 1}
    assert any("1 of 5 attempts failed (1 × join_timeout)" in words for words in run.warnings)


def test_a_run_in_which_nothing_succeeded_still_has_its_headline_stages(tmp_path: Path) -> None:
    """Where every trial failed, the table shows every headline stage with n of zero."""
    failures = dict.fromkeys(range(4), "no_worker")
    run = connect_run(tmp_path / "run.jsonl", trials=3, failures=failures)
    assert run.summary()["n"].tolist() == [0] * 6
    assert run.summary()["failed"].tolist() == [3] * 6
    assert run.to_json()["stages"]["connection"]["p50_s"] is None
    json.dumps(run.to_json(), allow_nan=False)
    assert "no_worker" in repr(run)


def test_failed_turns_count_as_attempts(tmp_path: Path) -> None:
    """The attempts of a turns run are its turns; one without a reply is a failure."""
    result = turns_run(tmp_path / "run.jsonl", failures={(2, 1): "no_reply"}).to_json()
    assert (result["n"], result["failed"]) == (20, 1)
    assert result["stages"]["voice_to_voice"]["n"] == 19


def test_warm_ups_are_kept_and_not_counted(tmp_path: Path) -> None:
    """A warm-up trial is in the frame, flagged, and in no figure."""
    run = connect_run(tmp_path / "run.jsonl", trials=6)
    assert run.frame.loc[run.frame["warmup"], "trial"].unique().tolist() == [0]
    assert run.summary()["n"].unique().tolist() == [6]
    assert run.to_json()["n"] == 6


def test_what_the_figures_rest_on_is_said_with_them(tmp_path: Path) -> None:
    """Uncertain beginnings, models that stood for others, and what was refused are warnings."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="turns", arms={"default": {}}) as run:
        for number, uncertain in enumerate(({"uncertain_s": 0.06}, {"uncertain_s": 0.25}, {})):
            run.trial(number, f"room-{number}", "default")
            run.note(number, 0, **uncertain)
            run.outcome(number, "ok", turn=0)
        run.note(2, models="deepgram/nova-3 → moonshine-base-en", refused="/v1/bargein")
    warnings = Run.load(path).warnings
    begin = "2 replies begin in noise or music, which leaves the beginning uncertain by up to 250"
    assert any(sentence.startswith(begin) for sentence in warnings)
    assert any("deepgram/nova-3 → moonshine-base-en." in sentence for sentence in warnings)
    assert any("local fallback: /v1/bargein." in sentence for sentence in warnings)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    """What was recorded can be read while the run still goes on."""
    path = tmp_path / "run.jsonl"
    writer = writer_of(path)
    writer.mark(1, Mark("click", 1.0))
    assert Run.load(path).marks["mark"].tolist() == ["click"]
    writer.close()


def test_a_run_that_crashed_loads_with_a_warning(tmp_path: Path) -> None:
    """A last line cut in two is left out; the trial under way is an error, the rest is there."""
    path = tmp_path / "run.jsonl"
    whole = connect_run(path, trials=3)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex('{"type":"outcome"') + 20], encoding="utf-8")
    cut = Run.load(path)
    assert whole.complete
    assert not cut.complete
    assert any("cut off" in words for words in cut.warnings)
    assert any("did not end in order" in words for words in cut.warnings)
    assert cut.outcomes["outcome"].tolist() == ["ok", "ok", "ok", "error"]


def test_an_error_inside_the_run_leaves_the_file_without_its_end(tmp_path: Path) -> None:
    """A run that ended by an exception says so when it is loaded."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt), writer_of(path):
        raise KeyboardInterrupt
    assert not Run.load(path).complete


def test_worker_marks_carry_their_uncertainty(tmp_path: Path) -> None:
    """Marks are seconds since the click, with whose clock and how sure."""
    marks = connect_run(tmp_path / "run.jsonl", trials=2).marks
    assert (marks.loc[marks["mark"] == "click", "t_s"] == 0).all()
    of_worker = marks[marks["clock"] == "worker"]
    assert set(of_worker["uncertainty_s"]) == {0.0012}
    assert "job_received" in set(of_worker["mark"])


def test_notes_of_one_turn_are_one_row(tmp_path: Path) -> None:
    """Facts that were noted one after the other end up side by side."""
    notes = turns_run(tmp_path / "run.jsonl", calls=1, turns=1).notes
    turn = notes[notes["turn"] == 0].iloc[0]
    assert turn["said"] == turn["transcript"] == "What is the capital of France?"
    assert turn["wer"] == 0


def test_parquet_is_the_frame(tmp_path: Path) -> None:
    """The derived copy reads back as the same table, also where arms' columns differ in type."""
    arms: dict[str, dict[str, float | str]] = {"a": {"delay": 0.1}, "b": {"delay": "auto"}}
    run = connect_run(tmp_path / "run.jsonl", trials=4, arms=arms)
    pd.testing.assert_frame_equal(
        pd.read_parquet(run.to_parquet(tmp_path / "run.parquet")), run.frame
    )


def test_json_has_the_shape_of_the_design(tmp_path: Path) -> None:
    """The JSON of a bench has the agreed names, and with several arms each arm and the ratios."""
    single = connect_run(tmp_path / "single.jsonl", trials=4).to_json()
    names = "format run_id kind config host n failed outcomes warnings stages"
    assert " ".join(single) == f"{names} word_error_rate split_turns"
    assert list(single["stages"]["join"]) == ["n", "mean_s", "p50_s", "p95_s", "p99_s", "ci95_s"]
    arms: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    several = connect_run(tmp_path / "several.jsonl", trials=20, arms=arms, slower_arm=0.5)
    result = several.to_json()
    assert list(result["arms"]) == ["a", "b"]
    assert result["arms"]["b"]["n"] == 10
    assert list(result["arms"]["b"])[1:] == [*names.split()[5:], "word_error_rate", "split_turns"]
    assert result["ratios"]["b/a"]["join"]["ratio"] == pytest.approx(0.5, rel=0.2)


def test_arms_are_compared_round_by_round(tmp_path: Path) -> None:
    """Of each arm the k-th trial stands against the k-th of the first; text and HTML tell it."""
    arms: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    run = connect_run(tmp_path / "run.jsonl", trials=20, arms=arms, slower_arm=0.5)
    rows = run.frame.query("stage == 'join' and not warmup")
    joins = [rows.loc[rows["arm"] == arm, "duration_s"].to_numpy() for arm in arms]
    ratio = run.ratios()["b/a"]["join"]
    assert ratio.ratio == pytest.approx(np.median(joins[1] / joins[0]))
    (line,) = run.comparisons
    assert line.startswith("b/a: connection × 0.")
    assert line in repr(run)
    assert line in run._repr_html_()
    assert connect_run(tmp_path / "one.jsonl", trials=3).comparisons == []


def test_p99_needs_a_hundred_measurements(tmp_path: Path) -> None:
    """The table has p99 from 100 trials on and not below."""
    assert "p99" not in connect_run(tmp_path / "few.jsonl", trials=99).summary()
    assert connect_run(tmp_path / "many.jsonl", trials=100).summary()["p99"].notna().all()


def test_text_and_html_show_the_same_table(tmp_path: Path) -> None:
    """A run shows its figures, its warnings and its id both ways."""
    run = connect_run(tmp_path / "run.jsonl", trials=3)
    p50 = f"{run.summary()['p50'].to_dict()['connection']:,.1f}"
    for shown in (repr(run), run._repr_html_()):
        assert p50 in shown
        assert run.header.run_id in shown
        assert "Only 3 calls were measured" in shown


def test_names_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """An unknown outcome, mark, arm or trial, or a stage that marks give, is a ValueError."""
    with writer_of(tmp_path / "run.jsonl") as writer:
        with pytest.raises(ValueError, match="unknown outcome 'fine'"):
            writer.outcome(1, "fine")
        with pytest.raises(ValueError, match="unknown mark 'clack'"):
            writer.mark(1, Mark("clack", 0.0))
        with pytest.raises(ValueError, match="computed from marks"):
            writer.stage(1, "join", 0.1)
        with pytest.raises(ValueError, match="has not begun"):
            writer.mark(2, Mark("click", 0.0))
        with pytest.raises(ValueError, match="begun already"):
            writer.trial(1, "room-1", "default")
        with pytest.raises(ValueError, match="unknown arm 'other'"):
            writer.trial(2, "room-2", "other")
        with pytest.raises(ValueError, match="finite"):
            writer.mark(1, Mark("click", float("nan")))
    with pytest.raises(ValueError, match="columns of the frame already"):
        RunWriter(tmp_path / "other.jsonl", kind="connect", arms={"a": {"room": "x"}})


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    """A second run into the same file is refused, and the first is untouched."""
    run = connect_run(tmp_path / "run.jsonl", trials=2)
    with pytest.raises(RunFileError, match="exists already"):
        RunWriter(tmp_path / "run.jsonl", kind="connect")
    assert Run.load(tmp_path / "run.jsonl").header == run.header


@pytest.mark.parametrize(
    ("content", "observed"),
    [
        (b"", "is empty"),
        (b"hello\n", "line 1 of .* is not JSON"),
        (b"[1]\n", "does not start with the header line of a run"),
        (b'{"type":"run","format":2}\n', "has format 2; this labvoice reads format 1"),
        (b'{"type":"run","format":1}\n', "line 1 of .* is not a line of a run"),
        (b"\xff\xfe\x00\n", "is not a text file"),
    ],
)
def test_files_that_are_no_runs_are_named(tmp_path: Path, content: bytes, observed: str) -> None:
    """Whatever is not a run ends in one error that says what the file is."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFileError, match=observed) as caught:
        Run.load(path)
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path without a file ends in one error with a hint."""
    with pytest.raises(RunFileError, match="No such file"):
        Run.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("line", "observed"),
    [
        ("{broken", "line 3 of .* is not JSON"),
        ('{"type":"outcome","trial":1,"outcome":"fine"}', "unknown outcome 'fine'"),
        ('{"type":"mark","trial":9,"mark":"click","t_s":1}', "trial 9, which has not started"),
        ('{"type":"party"}', "line 3 of .* is not a line of a run"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, observed: str) -> None:
    """A line in the middle that is wrong is an error with its number, not silently left out."""
    path = tmp_path / "run.jsonl"
    writer_of(path).close()
    first, second, end = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join((first, second, line, end)), encoding="utf-8")
    with pytest.raises(RunFileError, match=observed):
        Run.load(path)


def test_a_run_file_is_read_alike_in_blocks_and_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks, unusual spaces and numbers of another type make no other run."""
    path = tmp_path / "run.jsonl"
    whole = turns_run(path, failures={(2, 1): "no_reply"})
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1000)
    spaced = tmp_path / "spaced.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for content in lines[1:-1]:
        content["trial"] = float(content["trial"])
    spaced.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for run in (Run.load(path), Run.load(spaced)):
        for name in ("frame", "marks", "notes", "outcomes"):
            pd.testing.assert_frame_equal(getattr(run, name), getattr(whole, name))
        assert run.to_json() == whole.to_json()
    late = path.read_text(encoding="utf-8").splitlines()
    (begins,) = (place for place, line in enumerate(late) if '"type":"trial","trial":2,' in line)
    bad = late.copy()
    late.insert(-1, late.pop(begins))
    spaced.write_text("\n".join(late), encoding="utf-8")
    with pytest.raises(RunFileError, match=f"line {begins + 1} of .* refers to trial 2, "):
        Run.load(spaced)
    bad[80] = bad[80].replace('"trial":', '"trial":9')
    path.write_text("\n".join(bad), encoding="utf-8")
    with pytest.raises(RunFileError, match=r"line 81 of .* refers to trial 9"):
        Run.load(path)


def test_fields_in_any_order_are_the_same_run(tmp_path: Path) -> None:
    """The writer's own lines, which are read as CSV, give what the same lines give as JSON."""
    path, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    with writer_of(path) as writer:
        for turn in (None, 0, 1):
            writer.mark(1, Mark("click", 1.5), turn=turn)
            writer.mark(1, Mark("job_received", -2e-7, "worker", 0.0125), turn=turn)
            writer.stage(1, "tts_node_ttfb", 0.25, turn=turn, start_s=None if turn else 3.0)
            writer.outcome(1, "error", turn=turn, detail='no "reply", said ’nobody’ \\ never')
            writer.outcome(1, "ok", turn=turn)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turned = [json.dumps({"type": line["type"], **dict(reversed(line.items()))}) for line in lines]
    other.write_text(
        "\n".join(turned).replace('": ', '":').replace(", ", ",") + "\n", encoding="utf-8"
    )
    one, two = reader.read(path)[1], reader.read(other)[1]
    for name in ("trials", "marks", "stages"):
        pd.testing.assert_frame_equal(
            getattr(one, name), getattr(two, name), check_categorical=False
        )
    details = set(one.outcomes["detail"])
    assert details == {"", 'no "reply", said ’nobody’ \\ never'}


def test_a_run_that_has_just_begun_has_empty_tables(tmp_path: Path) -> None:
    """A file of a first line alone loads, and its figures are none."""
    path = tmp_path / "run.jsonl"
    writer_of(path).close()
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    run = Run.load(path)
    assert not run.complete
    assert run.frame.empty
    assert run.outcomes.empty
    assert run.to_json()["n"] == 0


def test_host_facts_say_what_was_measured_on() -> None:
    """Host facts name processor, cores, memory, load, system and versions, and are JSON."""
    facts = host.facts("1.13.5")
    assert set(facts) == {"cpu", "cores", "memory_bytes", "load_1m", "os", "python", "versions"}
    assert facts["versions"]["livekit-server"] == "1.13.5"
    assert facts["versions"]["livekit-agents"] == "1.8.9"
    assert facts["cores"] >= 1
    json.dumps(facts, allow_nan=False)


def test_a_stage_that_ends_before_it_begins_is_left_out_and_named(tmp_path: Path) -> None:
    """A worker's clock that went wrong gives no negative figure, in no table and no picture."""
    with RunWriter(tmp_path / "run.jsonl", kind="connect") as writer:
        for trial in range(3):
            writer.trial(trial, f"room-{trial}", "default")
            for mark, at_s in (
                ("click", 0),
                ("dispatch_requested", 0.1),
                ("job_received", -40.0 if trial == 1 else 0.3),
                ("agent_listening", 0.9),
            ):
                writer.mark(trial, Mark(mark, 100.0 * trial + at_s))
            writer.stage(trial, "memory_load", -3.0 if trial == 1 else 0.25)
            writer.outcome(trial, "ok")
    run = Run.load(tmp_path / "run.jsonl")
    figures = run.to_json()["stages"]
    counts = {stage: figures[stage]["n"] for stage in ("job_request", "memory_load", "ready")}
    assert counts == {"job_request": 2, "memory_load": 2, "ready": 3}
    assert figures["job_request"]["p50_s"] == pytest.approx(0.2)
    (warning,) = (words for words in run.warnings if "cannot be" in words)
    assert "job_request -40.1 s in trial 1" in warning
    heads, rows = connection_rows(run)
    cells = [row[heads.index("job_request ms")] for row in rows]
    assert cells == ["200", "–", "200"]
    stages = run.frame.query("trial == 1")
    assert not {"job_request", "memory_load"} & measured_stages(stages).keys()


def test_figures_of_the_agent_that_cannot_be_are_left_out_and_named(tmp_path: Path) -> None:
    """An end of turn after 203 s and a first token before its question move no mean."""
    with RunWriter(tmp_path / "run.jsonl", kind="turns") as writer:
        for trial in range(12):
            writer.trial(trial, f"room-{trial}", "default")
            writer.mark(trial, Mark("click", 10.0 * trial))
            writer.mark(trial, Mark("agent_listening", 10.0 * trial + 0.5))
            writer.outcome(trial, "ok")
            for mark, at_s in (
                ("user_speech_start", 1),
                ("user_speech_end", 3),
                ("reply_heard", 3.7),
            ):
                writer.mark(trial, Mark(mark, 10.0 * trial + at_s), turn=0)
            wrong = trial == 5
            writer.stage(trial, "end_of_turn_delay", 203.4 if wrong else 0.4, turn=0)
            writer.stage(trial, "llm_node_ttft", -1.0 if wrong else 0.2, turn=0)
            writer.stage(trial, "e2e_latency", 203.9 if wrong else 0.5, turn=0)
            writer.outcome(trial, "ok", turn=0)
    run = Run.load(tmp_path / "run.jsonl")
    figures = run.to_json()["stages"]
    means = {name: figures[name]["mean_s"] for name in ("end_of_turn_delay", "llm_node_ttft")}
    assert means == {"end_of_turn_delay": pytest.approx(0.4), "llm_node_ttft": pytest.approx(0.2)}
    assert figures["transport"]["n"] == figures["e2e_latency"]["n"] == 11
    assert figures["voice_to_voice"]["n"] == 12
    (warning,) = (words for words in run.warnings if "cannot be" in words)
    assert "end_of_turn_delay 203.4 s in trial 5" in warning
    raw = run.frame.query("not plausible")
    assert sorted(raw["duration_s"]) == [-1.0, 203.4, 203.9]
