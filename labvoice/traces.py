"""A recorded run as OpenTelemetry traces: one for each call, a span for each stage.

Attributes follow OpenTelemetry's conventions for generative AI where they have a name for a thing
(https://opentelemetry.io/docs/specs/semconv/gen-ai/): a turn is an `invoke_agent`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pandas as pd
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Status, StatusCode

from labvoice.errors import RunFileError, ServerUnreachableError, UsageError
from labvoice.protocol.tracing import TRACES_PATH, end_span, start_span, traced
from labvoice.protocol.vocabulary import AGENT_TURN_STAGES
from labvoice.runs.placement import measured_stages, place
from labvoice.runs.run import Run

_SCOPE: Final = "labvoice.runs"
_BATCH: Final = 512
_LANGFUSE_FIRST: Final = "langfuse.observation.completion_start_time"
"""Langfuse knows the time to the first token by this attribute alone (its
`packages/shared/src/server/otel/OtelIngestionProcessor.ts`, August 2026)."""
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""Logger that says why an export failed."""


class Sent(NamedTuple):
    """What was sent.

    Attributes:
        trace_ids: Of each call, as 32 hexadecimal digits.
        spans: How many.
        endpoint: Where to.
    """

    trace_ids: list[str]
    spans: int
    endpoint: str


def send(run: Run, endpoint: str | None = None, *, words: bool = False) -> Sent:
    """Sends a run's calls as traces to an OTLP endpoint, by HTTP.

    Instants are those of the run, and ids are made from its id: sent again, they are the same.

    Args:
        endpoint: Base address of the collector, as OTEL_EXPORTER_OTLP_ENDPOINT has it; that
            variable's when not given. Its further variables count too (headers, timeout, …).
        words: Whether what was spoken is sent as well.

    Raises:
        UsageError: No endpoint is named, or it is no HTTP address.
        RunFileError: The run has no calls.
        ServerUnreachableError: The endpoint does not take the spans.
    """
    url = None if endpoint is None else traces_url(endpoint)
    if url is None and not traced():
        raise UsageError(
            "nothing says where the traces go",
            "give `--endpoint http://127.0.0.1:4318`, or set OTEL_EXPORTER_OTLP_ENDPOINT",
        )
    spans = spans_of(run, words=words)
    exporter = OTLPSpanExporter(endpoint=url)
    shown = (
        url
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or traces_url(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
    )
    reasons = _Reasons()
    logger = logging.getLogger(_EXPORTER)
    logger.addHandler(reasons)
    propagated, logger.propagate = logger.propagate, False
    try:
        for first in range(0, len(spans), _BATCH):
            if exporter.export(spans[first : first + _BATCH]) is not SpanExportResult.SUCCESS:
                raise ServerUnreachableError(
                    f"{shown} does not take the spans: {reasons.last or 'no reason is known'}",
                    "an OTLP collector takes them by HTTP, usually at port 4318; "
                    "OTEL_EXPORTER_OTLP_HEADERS holds a key where one is needed",
                )
    finally:
        logger.propagate = propagated
        logger.removeHandler(reasons)
        exporter.shutdown()  # type: ignore[no-untyped-call]
    ids = dict.fromkeys(f"{span.context.trace_id:032x}" for span in spans)
    return Sent(list(ids), len(spans), shown)


def traces_url(endpoint: str) -> str:
    """Returns the address to which spans are sent, of a collector's base address.

    Raises:
        UsageError: It is no HTTP address.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(
            f"{endpoint!r} is no HTTP address", "such as http://127.0.0.1:4318; gRPC is not spoken"
        )
    return endpoint if parts.path.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH


class _Reasons(logging.Handler):
    """Keeps the last thing that the exporter said."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class _Ids(IdGenerator):
    """Ids that follow from a seed; those of the first span may be given."""

    def __init__(self) -> None:
        self.seed("")

    def seed(self, text: str, traceparent: str | None = None) -> None:
        self._seed, self._made = text, 0
        self._given = [int(each, 16) for each in traceparent.split("-")[1:3]] if traceparent else []

    def generate_trace_id(self) -> int:
        return self._given.pop(0) if self._given else self._next(16)

    def generate_span_id(self) -> int:
        return self._given.pop(0) if self._given else self._next(8)

    def _next(self, size: int) -> int:
        self._made += 1
        digest = hashlib.sha256(f"{self._seed}/{self._made}".encode()).digest()
        return int.from_bytes(digest[:size], "big")


def spans_of(run: Run, *, words: bool = False) -> tuple[ReadableSpan, ...]:
    """Returns the spans of a run's calls; a call's first one is `call`, their root.

    Raises:
        RunFileError: The run has no calls.
    """
    clicks = run.clicks
    if clicks.empty:
        raise RunFileError("the run has no calls", "calls are in runs of `call`, `test`, `bench`")
    ids, memory = _Ids(), InMemorySpanExporter()
    version = str(run.header.host.get("versions", {}).get("labvoice", ""))  # type: ignore[union-attr]
    resource = Resource.create({SERVICE_NAME: "labvoice", SERVICE_VERSION: version or "unknown"})
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    calls = _Calls(run, provider.get_tracer(_SCOPE), words)
    for trial, click_s in zip(clicks.index.astype(int), clicks.astype(float), strict=True):
        # A call that was traced live has spans of its agent already, under a root not yet sent.
        traceparent = calls.facts(trial, None).get("traceparent")
        ids.seed(f"{run.header.run_id}/{trial}", traceparent)
        calls.make(trial, click_s)
    return memory.get_finished_spans()


class _Calls:
    """Makes the spans of calls, one call after the other."""

    def __init__(self, run: Run, tracer: trace.Tracer, words: bool) -> None:
        self._header, self._tracer, self._words = run.header, tracer, words
        frame = run.frame
        self._stages, self._none = dict(iter(frame.groupby("trial"))), frame.iloc[:0]
        self._marks = dict(iter(run.marks.groupby("trial")))
        self._outcomes = dict(iter(run.outcomes.groupby("trial")))
        self._notes = dict(iter(run.notes.groupby("trial")))
        self._recordings = {row["trial"]: row for row in run.recordings.to_dict("records")}

    def make(self, trial: int, click_s: float) -> None:
        marks = self._marks[trial]
        outcomes = self._outcomes[trial]
        stages = self._stages.get(trial, self._none)
        of_call = outcomes[outcomes["turn"].isna()].to_dict("records")[0]
        root = start_span(
            self._tracer,
            "call",
            click_s + marks["t_s"].min(),
            attributes=self._about_call(trial, of_call),
        )
        context = trace.set_span_in_context(root)
        _judge(root, outcomes["outcome"])
        self._events(root, marks[marks["turn"].isna()], click_s)
        of_connection = measured_stages(stages[stages["turn"].isna()])
        self._spans(of_connection, context, root, click_s)
        for outcome in outcomes[outcomes["turn"].notna()].to_dict("records"):
            turn = outcome["turn"]
            self._turn(
                int(turn),
                str(outcome["outcome"]),
                marks[marks["turn"] == turn],
                measured_stages(stages[stages["turn"] == turn]),
                context,
                click_s,
                self._about_turn(trial, int(turn), str(of_call["arm"]), str(of_call["room"])),
            )
        end_span(root, click_s + marks["t_s"].max())

    def _turn(
        self,
        turn: int,
        outcome: str,
        marks: pd.DataFrame,
        measured: dict[str, tuple[float, float]],
        context: Any,
        click_s: float,
        about: Mapping[str, Any],
    ) -> None:
        if marks.empty:
            return
        at_s = dict(zip(marks["mark"], marks["t_s"], strict=True))
        agent = about.get("gen_ai.agent.name")
        span = start_span(
            self._tracer,
            f"invoke_agent {agent}" if agent else "invoke_agent",
            click_s + min(at_s.values()),
            context,
            {**about, "labvoice.turn": turn + 1, "labvoice.outcome": outcome},
        )
        _judge(span, pd.Series([outcome]))
        self._events(span, marks, click_s)
        inside = trace.set_span_in_context(span)
        placed = place(measured) if "voice_to_voice" in measured else []
        end_s = at_s.get("user_speech_end", 0.0)
        model = about.get("gen_ai.request.model")
        for name, start_s, duration_s in placed:
            derived = name in AGENT_TURN_STAGES or name == "transport"
            facts: dict[str, Any] = {"labvoice.start_is_derived": True} if derived else {}
            began_s = click_s + end_s + start_s
            if name == "llm_node_ttft":
                first = datetime.fromtimestamp(began_s + duration_s, UTC)
                facts["gen_ai.operation.name"] = "chat"
                facts["gen_ai.response.time_to_first_chunk"] = duration_s
                facts[_LANGFUSE_FIRST] = first.isoformat(timespec="milliseconds")
                facts |= {"gen_ai.request.model": model} if model else {}
            self._span(name, began_s, duration_s, inside, facts)
        others = {name: it for name, it in measured.items() if name not in {p.name for p in placed}}
        self._spans(others, inside, span, click_s)
        end_span(span, click_s + max(at_s.values()))

    def _spans(
        self,
        measured: Mapping[str, tuple[float, float]],
        context: Any,
        owner: trace.Span,
        click_s: float,
    ) -> None:
        """Makes spans of stages; one without a start is an attribute of their owner."""
        for name, (start_s, duration_s) in measured.items():
            if math.isnan(start_s) or duration_s < 0:
                owner.set_attribute(f"labvoice.stage.{name}_s", duration_s)
            else:
                self._span(name, click_s + start_s, duration_s, context)

    def _span(
        self,
        name: str,
        at_s: float,
        duration_s: float,
        context: Any,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        span = start_span(self._tracer, name, at_s, context, facts)
        end_span(span, at_s + duration_s)

    def _events(self, span: trace.Span, marks: pd.DataFrame, click_s: float) -> None:
        for mark in marks.to_dict("records"):
            at_s = click_s + mark["t_s"]
            span.add_event(str(mark["mark"]), {"labvoice.clock": mark["clock"]}, round(at_s * 1e9))

    def _about_call(self, trial: int, outcome: Mapping[Any, Any]) -> dict[str, Any]:
        columns = self._header.arms[outcome["arm"]]
        facts = self.facts(trial, None)
        about = {
            "session.id": self._header.run_id,
            "gen_ai.conversation.id": outcome["room"],
            "labvoice.run.kind": self._header.kind,
            "labvoice.trial": trial,
            "labvoice.arm": outcome["arm"],
            "labvoice.warmup": bool(outcome["warmup"]),
            "labvoice.outcome": outcome["outcome"],
            "labvoice.scenario": facts.get("scenario"),
            **{f"labvoice.config.{name}": value for name, value in columns.items()},
        }
        recording = self._recordings.get(trial)
        if self._words:
            # A list of traces shows the words of their roots.
            numbers = self._outcomes[trial]["turn"].dropna()
            turns = [self._said(trial, int(turn)) for turn in numbers]
            about["gen_ai.input.messages"] = _messages("user", *(said for said, _ in turns))
            about["gen_ai.output.messages"] = _messages("assistant", *(it for _, it in turns))
        if recording is not None:
            about["labvoice.recording"] = Path(recording["path"]).resolve().as_uri()
            about["labvoice.recording.start_s"] = float(recording["start_s"])
        return {name: value for name, value in about.items() if value is not None}

    def _about_turn(self, trial: int, turn: int, arm: str, room: str) -> dict[str, Any]:
        columns = self._header.arms[arm]
        about = {
            "session.id": self._header.run_id,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "livekit",
            "gen_ai.agent.name": columns.get("agent") or self._header.config.get("agent_name"),
            "gen_ai.conversation.id": room,
            "gen_ai.request.model": columns.get("llm_model"),
            "gen_ai.output.type": "speech",
        }
        if self._words:
            said, reply = self._said(trial, turn)
            about["gen_ai.input.messages"] = _messages("user", said)
            about["gen_ai.output.messages"] = _messages("assistant", reply)
        return {name: value for name, value in about.items() if value is not None}

    def _said(self, trial: int, turn: int) -> tuple[str | None, str | None]:
        """What the caller said in a turn, and what the agent replied."""
        facts = self.facts(trial, turn)
        return facts.get("said") or facts.get("transcript"), facts.get("reply")

    def facts(self, trial: int, turn: int | None) -> dict[str, Any]:
        """What is known of a unit besides times."""
        notes = self._notes.get(trial)
        if notes is None:
            return {}
        rows = notes[notes["turn"].isna() if turn is None else notes["turn"] == turn]
        facts = rows.to_dict("records")[0] if len(rows) else {}
        return {str(k): v for k, v in facts.items() if isinstance(v, str) and v}


def _judge(span: trace.Span, outcomes: pd.Series) -> None:
    """Says of a span that it failed, with the first outcome that is not ok."""
    failed = next((str(outcome) for outcome in outcomes if outcome != "ok"), None)
    if failed is not None:
        span.set_attribute("error.type", failed)
        span.set_status(Status(StatusCode.ERROR, failed))


def _messages(role: str, *texts: str | None) -> str | None:
    """Messages as the conventions have them, as JSON; None where there are no words."""
    finished = {"finish_reason": "stop"} if role == "assistant" else {}
    messages = [
        {"role": role, "parts": [{"type": "text", "content": text}], **finished}
        for text in texts
        if text
    ]
    return json.dumps(messages, ensure_ascii=False) if messages else None
