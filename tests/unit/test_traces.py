"""Runs as OpenTelemetry traces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typer.testing import CliRunner

from labvoice.cli import app
from labvoice.errors import RunFileError, ServerUnreachableError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter
from labvoice.traces import send
from tests.collector import Collector, collecting

STARTED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
CLICK_S = STARTED.timestamp() + 5
"""The run begins at 100 s of its clock, and its click is at 105."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    with collecting() as server:
        yield server


def sent_to(collector: Collector) -> list[Span]:
    """The spans that came."""
    return [span for _, span in collector.spans]


def recorded(path: Path, started_s: float | None = 100.0) -> Path:
    """A call of two turns, of which the second was not answered."""
    arms = {"mine": {"llm_model": "small", "strategy": "sequential"}}
    with RunWriter(
        path,
        kind="call",
        arms=arms,
        config={"agent_name": "shop", "command": "labvoice call --say 'my secret'"},
        host_facts={},
        started=(STARTED, started_s),
    ) as run:
        run.trial(0, "room-1", "mine")
        for name, at_s in (("click", 105.0), ("dispatch_requested", 105.1)):
            run.mark(0, Mark(name, at_s))
        run.mark(0, Mark("agent_listening", 105.6))
        run.mark(0, Mark("job_received", 105.2, "worker", 0.001))
        run.outcome(0, "ok")
        for name, at_s in (
            ("user_speech_start", 107.0),
            ("user_speech_end", 108.0),
            ("reply_heard", 109.0),
            ("reply_end", 110.0),
        ):
            run.mark(0, Mark(name, at_s), turn=0)
        for stage, lasts_s in (
            ("e2e_latency", 0.75),
            ("end_of_turn_delay", 0.25),
            ("llm_node_ttft", 0.125),
            ("llm_node_ttfs", 0.25),
            ("tts_node_ttfb", 0.25),
            ("jitter_buffer", 0.0625),
        ):
            run.stage(0, stage, lasts_s, turn=0)
        run.note(0, 0, said="my secret", transcript="my secrets", reply="is safe")
        run.outcome(0, "ok", turn=0)
        run.mark(0, Mark("user_speech_start", 111.0), turn=1)
        run.mark(0, Mark("user_speech_end", 112.0), turn=1)
        run.note(0, 1, said="another secret")
        run.outcome(0, "no_reply", turn=1, detail="after another secret nothing was heard")
        recording = path.with_suffix("") / "0000.ogg"
        recording.parent.mkdir()
        recording.write_bytes(b"")
        run.note(0, recording=f"{path.stem}/0000.ogg", recording_start_s=0.5)
    return path


def facts(span: Span) -> dict[str, Any]:
    """The attributes of a span."""
    values = {each.key: each.value for each in span.attributes}
    return {key: getattr(value, value.WhichOneof("value") or "") for key, value in values.items()}


def lies(span: Span) -> tuple[float, float]:
    """When a span began, in seconds since the click, and how long it lasted."""
    start_s = span.start_time_unix_nano / 1e9
    return round(start_s - CLICK_S, 3), round(span.end_time_unix_nano / 1e9 - start_s, 3)


def test_a_call_is_a_trace_with_a_span_for_each_stage(tmp_path: Path, collector: Collector) -> None:
    """Spans lie where the run says, on the wall clock of the run, each under what it is part of."""
    path, result = recorded(tmp_path / "run.jsonl"), tmp_path / "result.json"
    command = ["export", str(path), "--to", "otlp", "--endpoint", collector.endpoint]
    done = CliRunner().invoke(app, [*command, "--json", str(result)])
    assert done.exit_code == 0, done.output
    spans = {span.name: span for span in sent_to(collector) if "invoke" not in span.name}
    told = json.loads(result.read_text())
    assert told["trace_ids"] == [spans["call"].trace_id.hex()]
    assert told["spans"] == len(collector.spans)
    assert f"sent 1 traces, {len(collector.spans)} spans" in done.output
    assert {span.trace_id for span in sent_to(collector)} == {spans["call"].trace_id}
    assert lies(spans["call"]) == (0.0, 7.0)
    assert lies(spans["connection"]) == (0.0, 0.6)
    assert lies(spans["job_request"]) == (0.1, 0.1)
    turns = [span for span in sent_to(collector) if span.name == "invoke_agent shop"]
    assert [lies(turn) for turn in turns] == [(2.0, 3.0), (6.0, 1.0)]
    assert lies(spans["voice_to_voice"]) == (3.0, 1.0)
    for span in (spans["connection"], *turns):
        assert span.parent_span_id == spans["call"].span_id
    assert spans["voice_to_voice"].parent_span_id == turns[0].span_id
    # Of the agent's figures only the length is known: generation ends with the first audio.
    assert lies(spans["tts_node_ttfb"]) == (3.5, 0.25)
    assert lies(spans["llm_node_ttft"]) == (3.25, 0.125)
    assert facts(spans["llm_node_ttft"])["labvoice.start_is_derived"] is True
    assert "labvoice.start_is_derived" not in facts(spans["voice_to_voice"])
    # What has no place in time is a figure of its turn.
    assert "jitter_buffer" not in spans
    assert facts(turns[0])["labvoice.stage.jitter_buffer_s"] == 0.0625
    events = {event.name: event.time_unix_nano / 1e9 - CLICK_S for event in turns[0].events}
    assert events["reply_heard"] == pytest.approx(4.0, abs=1e-3)


def test_attributes_follow_the_conventions(tmp_path: Path, collector: Collector) -> None:
    """A turn is an invoke_agent, a failure has its error.type, the recording is linked."""
    path = recorded(tmp_path / "run.jsonl")
    send(Run.load(path), collector.endpoint)
    (call,) = (span for span in sent_to(collector) if not span.parent_span_id)
    first, second = (span for span in sent_to(collector) if "invoke" in span.name)
    assert facts(call)["labvoice.recording"] == (tmp_path / "run" / "0000.ogg").as_uri()
    assert facts(call)["labvoice.recording.start_s"] == 0.5
    assert facts(call)["session.id"] == Run.load(path).header.run_id
    assert facts(first) | {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "shop",
        "gen_ai.conversation.id": "room-1",
        "gen_ai.request.model": "small",
    } == facts(first)
    assert "error.type" not in facts(first)
    assert facts(second)["error.type"] == facts(call)["error.type"] == "no_reply"
    assert second.status.code == call.status.code == 2


def test_words_are_sent_only_on_request(tmp_path: Path, collector: Collector) -> None:
    """Neither text, transcript, command line nor an outcome's detail is sent without `--words`."""
    path = recorded(tmp_path / "run.jsonl")
    send(Run.load(path), collector.endpoint)
    assert b"secret" not in collector.bodies
    assert b"is safe" not in collector.bodies
    collector.spans.clear()
    send(Run.load(path), collector.endpoint, words=True)
    first, second = (span for span in sent_to(collector) if "invoke" in span.name)
    for name, role, text in (("input", "user", "my secret"), ("output", "assistant", "is safe")):
        (message,) = json.loads(facts(first)[f"gen_ai.{name}.messages"])
        assert message["role"] == role
        assert message["parts"] == [{"type": "text", "content": text}]
    assert "gen_ai.output.messages" not in facts(second)


def test_a_run_sent_again_has_the_same_ids(tmp_path: Path, collector: Collector) -> None:
    """Otherwise a backend would show each call twice."""
    path = recorded(tmp_path / "run.jsonl")
    sent = send(Run.load(path), collector.endpoint)
    ids = [(span.trace_id, span.span_id) for span in sent_to(collector)]
    assert len(set(ids)) == len(ids)
    collector.spans.clear()
    assert send(Run.load(path), f"{collector.endpoint}/v1/traces") == sent
    assert [(span.trace_id, span.span_id) for span in sent_to(collector)] == ids


def test_a_call_that_was_traced_live_is_the_root_of_its_agents_spans(
    tmp_path: Path, collector: Collector
) -> None:
    """The worker got the ids of the call's span before the span was there."""
    path = tmp_path / "run.jsonl"
    ids = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    with RunWriter(path, kind="call", host_facts={}) as run:
        run.trial(0, "room-1", "default")
        run.mark(0, Mark("click", 105.0))
        run.mark(0, Mark("agent_listening", 105.6))
        run.outcome(0, "ok")
        run.note(0, traceparent=f"00-{ids[0]}-{ids[1]}-01")
    assert send(Run.load(path), collector.endpoint).trace_ids == [ids[0]]
    (call,) = (span for span in sent_to(collector) if span.name == "call")
    assert call.span_id.hex() == ids[1]


def test_a_run_of_another_clock_begins_with_its_first_mark(tmp_path: Path) -> None:
    """A browser's clock is not the machine's: nothing else is known of when its marks were."""
    run = Run.load(recorded(tmp_path / "run.jsonl", started_s=None))
    assert run.clicks.to_dict() == {0: STARTED.timestamp()}


def test_what_cannot_be_sent_is_said(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No endpoint, a bad one, one that refuses or is not there, and a run without calls."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    path = recorded(tmp_path / "run.jsonl")
    run = Run.load(path)
    with pytest.raises(UsageError, match="where the traces go"):
        send(run)
    with pytest.raises(UsageError, match="no HTTP address"):
        send(run, "127.0.0.1:4317")
    collector.status = 401
    with pytest.raises(ServerUnreachableError, match=r"/v1/traces does not take the spans: .*401"):
        send(run, collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:9/v1/traces does not take"):
        send(run)
    for wrong in (["--to", "parquet", "--words"], ["--to", "otlp", "--out", "x"]):
        result = CliRunner().invoke(app, ["export", str(path), *wrong])
        assert isinstance(result.exception, UsageError)
    with RunWriter(tmp_path / "empty.jsonl", kind="http", host_facts={}):
        pass
    with pytest.raises(RunFileError, match="no calls"):
        send(Run.load(tmp_path / "empty.jsonl"), collector.endpoint)
