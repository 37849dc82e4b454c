"""The HTTP service's answers: their form, their errors, what is counted and logged."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from labvoice.dispatch import STRATEGIES
from labvoice.errors import (
    LabvoiceError,
    NoWorkerError,
    ServerAnswerError,
    ServerUnreachableError,
)
from labvoice.stack.workers.events import EventLog
from labvoice.web.backend import Counts
from labvoice.web.calls import Calls
from labvoice.web.errors import HttpError
from labvoice.web.logs import HIDDEN, JsonFormatter, set_up_logs
from labvoice.web.models import MAX_TURNS, CallReport, CallTurn, Check, RoomFacts
from labvoice.web.stub import AGENT_NAME, StubBackend
from tests.unit.test_web_security import sign
from tests.unit.web_client import KEY, OWNER, client_with

SEED_FIELDS = {"success", "room", "message", "dispatch_id", "room_existed"}


class Failing(StubBackend):
    """A stub whose dispatches fail and whose dependency is down."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def dispatch(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise self._error

    async def checks(self) -> list[Check]:
        return [Check(name="livekit", ok=False, message="does not answer", hint="start it")]


def test_a_dispatch_answers_with_who_joined() -> None:
    """The answer holds the agreed fields and more, and a second one finds the room there."""
    client = client_with()
    first = client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"}).json()
    assert set(first) >= {*SEED_FIELDS, "agent_name", "outcome", "marks"}
    assert first["success"]
    assert first["outcome"] == "ok"
    assert first["agent_name"] == AGENT_NAME
    assert not first["room_existed"]
    assert 0 <= first["marks"]["dispatch_requested"] <= first["marks"]["agent_visible"] < 10
    second = client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"}).json()
    assert second["room_existed"]
    assert second["dispatch_id"] == first["dispatch_id"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoWorkerError("nobody is there", "start one"), 503, "no_worker"),
        (ServerUnreachableError("LiveKit is away", "start it"), 502, "server_unreachable"),
        (ServerAnswerError("LiveKit answered internal"), 502, "server_answer"),
        (LabvoiceError("odd\n\nlast log lines:\nsecret lines"), 500, "labvoice"),
        (ZeroDivisionError("a fault with KEY"), 500, "internal"),
    ],
)
def test_a_failure_says_why(error: Exception, status: int, code: str) -> None:
    """Each failure has its status, code and words; a fault of ours tells none of its insides."""
    client = client_with(Failing(error))
    client.raise_server_exceptions = False  # type: ignore[attr-defined]
    answer = client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    assert answer.status_code == status
    body = answer.json()
    assert body["error"]["code"] == code
    assert "\n" not in body["error"]["message"]
    assert "ZeroDivision" not in answer.text
    assert "KEY" not in answer.text
    if isinstance(error, NoWorkerError):
        assert set(body) >= {*SEED_FIELDS, "agent_name", "outcome", "marks"}
        assert body["success"] is False
        assert body["outcome"] == "no_worker"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/static/nowhere.js", 404, "not_found"),
        ("GET", "/static/../app.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("PUT", "/api/token", 405, "method_not_allowed"),
        ("POST", "/api/token", 422, "invalid"),
        ("GET", "/api/calls/call-0001", 404, "no_such_call"),
        ("DELETE", "/api/dispatches/AD_none", 404, "no_such_dispatch"),
        ("POST", "/api/rooms/none/clean", 404, "no_such_room"),
    ],
)
def test_every_error_looks_alike(method: str, path: str, status: int, code: str) -> None:
    """Errors of the framework have the form of our own."""
    answer = client_with().request(method, path, headers=OWNER)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "hint"}
    assert answer.json()["error"]["code"] == code


def test_ready_tells_what_is_not() -> None:
    """With a dependency down /readyz is 503 and names it, while /healthz is 200."""
    client = client_with(Failing(LabvoiceError("")))
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["checks"][0]["name"] == "livekit"
    assert client.get("/healthz").status_code == 200
    assert client_with().get("/readyz").status_code == 200


def test_agents_without_letta_say_so() -> None:
    """The list is empty, a reason is given, and that there will be none; asking for one is 422."""
    client = client_with()
    answer = client.get("/api/agents", headers=OWNER).json()
    assert answer["agents"] == []
    assert answer["letta"] is False
    assert answer["reason"]
    for path in ("/api/dispatch-agent", "/api/token"):
        refused = client.post(path, headers=OWNER, json={"room": "r", "letta_agent_id": "Rex"})
        assert refused.status_code == 422
        assert "letta_agent_id" in refused.json()["error"]["hint"]


class Unknowing(StubBackend):
    """A stub whose rooms hang and whose turns for Letta cannot be counted."""

    asked = 0

    async def rooms(self) -> list[RoomFacts]:
        self.asked += 1
        await asyncio.Event().wait()
        return []

    async def counts(self) -> Counts:
        return Counts(failovers=3, memory_backlog=math.nan)

    async def checks(self) -> list[Check]:
        words = "the turns not yet written to Letta cannot be read"
        return [Check(name="memory store", ok=False, message=words, required=False)]


def test_what_cannot_be_counted_is_unknown_and_not_zero() -> None:
    """A fault of the memory store or a hung server leaves a scrape that says what is known."""
    client = client_with(Unknowing())
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics", headers=OWNER).text
    for line in (
        'labvoice_dependency_up{dependency="memory store"} 0.0',
        "labvoice_memory_backlog_turns NaN",
        "labvoice_failovers_total 3.0",
        "labvoice_rooms NaN",
        'labvoice_workers{agent_name="stub-agent"} 1.0',
    ):
        assert line in text


def test_metrics_are_named_as_prometheus_names_them() -> None:
    """One prefix, counters that end in _total, base units: seconds and ratios."""
    client = client_with()
    client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    text = client.get("/metrics", headers=OWNER).text
    found = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE ")]
    own = {name: kind for name, kind in found if not name.startswith(("process_", "python_"))}
    assert len(own) > 10
    for name, kind in own.items():
        assert name.startswith("labvoice_"), name
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.endswith("_seconds") == (kind == "histogram"), name


def test_rooms_are_not_asked_for_where_livekit_is_down() -> None:
    """What a check has found to be down is not waited for again."""

    class Down(Unknowing):
        async def checks(self) -> list[Check]:
            return [Check(name="livekit", ok=False, message="silence")]

    backend = Down()
    text = client_with(backend).get("/metrics", headers=OWNER).text
    assert 'labvoice_dependency_up{dependency="livekit"} 0.0' in text
    assert backend.asked == 0


@pytest.mark.parametrize(("strategy", "counted"), [("concurrent", 1), ("token", 2)])
def test_a_dispatch_is_counted_once(strategy: str, counted: int) -> None:
    """What the service times itself is not taken from the page too, unless a token dispatches."""
    client = client_with()
    client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    marks = {"dispatch_requested": 0, "dispatch_acknowledged": 0.2, "agent_visible": 0.5}
    report = {"room": "r", "strategy": strategy, "marks": marks}
    call = client.post("/api/calls/call-0001", headers=OWNER, json=report).json()
    assert call["stages"] == {"dispatch": 0.2, "join": 0.5}
    text = client.get("/metrics", headers=OWNER).text
    for stage in ("dispatch", "join"):
        assert f'labvoice_stage_duration_seconds_count{{stage="{stage}"}} {counted:.1f}' in text


def test_a_duration_below_zero_is_not_counted() -> None:
    """Marks in the wrong order and figures below zero make no stage."""
    client = client_with()
    turn = {
        "number": 0,
        "marks": {"user_speech_end": 5, "reply_heard": 4},
        "metrics": {"e2e_latency": -1},
    }
    report = {"room": "r", "marks": {"click": 2, "agent_listening": 1}, "turns": [turn]}
    call = client.post("/api/calls/call-0001", headers=OWNER, json=report).json()
    assert call["stages"] == {}
    text = client.get("/metrics", headers=OWNER).text
    assert "labvoice_stage_duration_seconds_count{" not in text


def test_all_calls_together_hold_so_many_turns() -> None:
    """One key cannot fill the memory: the oldest calls go when there are too many turns."""
    calls = Calls()
    turns = [CallTurn(number=number) for number in range(MAX_TURNS)]
    for number in range(50):
        calls.record(f"call-{number:04}", "owner", CallReport(room="r", turns=turns))
    for number in range(10):
        with pytest.raises(HttpError, match="call"):
            calls.get(f"call-{number:04}")
    assert [calls.get(f"call-{number:04}").room for number in range(10, 50)] == ["r"] * 40
    assert len(calls.get("call-0049").turns) == MAX_TURNS


def test_a_call_becomes_spans_of_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the click to the agent that listens, and each turn; the reports themselves are none."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("routes", "guard"):
        monkeypatch.setattr(f"labvoice.web.{module}.tracer", provider.get_tracer("test"))
    client = client_with()
    trace_id, click = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {**OWNER, "traceparent": f"00-{trace_id}-{click}-01"}
    marks = {"click": 0, "agent_listening": 1.5}
    turn = {"number": 0, "marks": {"user_speech_end": 4, "reply_heard": 5}}
    for report in (
        {"room": "r", "sent_s": 2, "marks": marks},
        {"room": "r", "sent_s": 6, "marks": marks, "turns": [turn]},
    ):
        client.post("/api/calls/call-0001", headers=headers, json=report)
    client.post("/api/calls/call-0002", headers=OWNER, json={"room": "r", "marks": marks})
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["connection", "voice_to_voice"]
    for span, seconds in zip(spans, (1.5, 1.0), strict=True):
        assert span.parent is not None
        assert f"{span.context.trace_id:032x}" == trace_id
        assert f"{span.parent.span_id:016x}" == click
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds, abs=1e-3)
    client.get("/api/rooms", headers=headers)
    assert exporter.get_finished_spans()[-1].name == "GET /api/rooms"


def test_the_lab_tells_a_page_what_it_may_report() -> None:
    """Strategies and the names of marks, figures and outcomes come from the service."""
    lab = client_with().get("/api/lab", headers=OWNER).json()
    assert {offer["name"] for offer in lab["strategies"]} == set(STRATEGIES) - {"automatic"}
    assert {offer["lifetime_s"] for offer in lab["strategies"]} == {StubBackend.idle_timeout_s - 10}
    report = {
        "room": "r",
        "outcome": lab["outcomes"][-1],
        "marks": dict.fromkeys(lab["marks"], 1),
        "turns": [
            {
                "number": 0,
                "marks": dict.fromkeys(lab["turn_marks"], 1),
                "metrics": dict.fromkeys(lab["turn_metrics"], 1),
            }
        ],
    }
    client = client_with()
    assert client.post("/api/calls/call-0001", headers=OWNER, json=report).status_code == 200


def test_a_call_is_put_together_from_its_reports() -> None:
    """Marks and turns add up, the first value stays, and stages are counted once."""
    client = client_with()
    url = "/api/calls/call-0001"
    reports = [
        {"room": "r", "marks": {"click": 0, "agent_listening": 1.5}},
        {
            "room": "r",
            "marks": {"agent_listening": 9, "greeting_heard": 2},
            "turns": [{"number": 0, "marks": {"user_speech_end": 4}}],
        },
        {
            "room": "r",
            "turns": [{"number": 0, "marks": {"reply_heard": 5}, "metrics": {"e2e_latency": 0.8}}],
        },
        {"room": "r", "turns": [{"number": 0, "marks": {"reply_heard": 5}}]},
    ]
    for report in reports:
        assert client.post(url, headers=OWNER, json=report).status_code == 200
    call = client.get(url, headers=OWNER).json()
    assert call["stages"] == {"connection": 1.5, "time_to_greeting": 2.0}
    assert call["turns"][0]["marks"] == {"user_speech_end": 4.0, "reply_heard": 5.0}
    text = client.get("/metrics", headers=OWNER).text
    for stage in ("connection", "time_to_greeting", "voice_to_voice", "e2e_latency"):
        assert f'labvoice_stage_duration_seconds_count{{stage="{stage}"}} 1.0' in text
    other_room = client.post(url, headers=OWNER, json={"room": "other"})
    assert other_room.status_code == 409


@pytest.mark.parametrize(
    "report",
    [
        '{"room": "r", "marks": {"lunch": 1}}',
        '{"room": "r", "marks": {"click": NaN}}',
        '{"room": "r", "marks": {"click": 1e300}}',
        '{"room": "r", "turns": [{"number": -1}]}',
        '{"room": "r", "turns": [{"number": 0, "metrics": {"mood": 1}}]}',
        '{"room": "r", "outcome": "fine"}',
        '{"room": "r", "said": "words"}',
    ],
)
def test_odd_marks_are_refused(report: str) -> None:
    """Unknown marks, odd numbers and words that were said are not taken."""
    headers = {**OWNER, "Content-Type": "application/json"}
    answer = client_with().post("/api/calls/call-0001", headers=headers, content=report)
    assert answer.status_code == 422


def test_a_webhook_counts_once() -> None:
    """LiveKit may deliver an event again; it is counted by its id."""
    backend = StubBackend()
    client = client_with(backend)
    body = '{"event": "room_started", "id": "EV_1", "room": {"name": "a"}}'
    headers = {
        "Authorization": sign(body, backend.api_secret.get_secret_value()),
        "Content-Type": "application/webhook+json",
    }
    seen = [
        client.post("/api/webhook", content=body, headers=headers).json()["seen_before"]
        for _ in range(2)
    ]
    assert seen == [False, True]
    text = client.get("/metrics", headers=OWNER).text
    assert 'labvoice_webhooks_total{event="room_started"} 1.0' in text


def test_the_dashboard_asks_for_metrics_that_are_there() -> None:
    """Every metric that the Grafana dashboard names is in a scrape, labels included."""
    import re

    client = client_with()
    client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    client.get("/nowhere")
    client.post("/api/calls/call-0001", headers=OWNER, json={"room": "r", "marks": {"click": 0}})
    text = client.get("/metrics", headers=OWNER).text
    text = client.get("/metrics", headers=OWNER).text
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads(Path("deploy/grafana/labvoice.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) >= 10
    for expression in asked:
        names = re.findall(r"\b((?:labvoice|process)_\w+)", expression)
        assert names
        for name in names:
            assert name in samples or name in _declared(text), expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            known = set().union(*(samples.get(name, set()) for name in names))
            wanted = {label.strip() for label in labels.split(",")}
            assert wanted <= known or all(name not in samples for name in names), expression


def _declared(text: str) -> set[str]:
    """Metrics that have a type but, so far, no sample."""
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The service's log."""
    stream = io.StringIO()
    kept = {n: logging.getLogger(n).handlers for n in ("labvoice", "uvicorn")}
    set_up_logs(stream, [SecretStr(KEY)])
    yield stream
    for name, handlers in kept.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).propagate = True


def test_the_log_has_the_ids_and_no_key(log: io.StringIO) -> None:
    """Each request is one JSON line with room, dispatch and job ids and the key's name."""
    client = client_with()
    client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    client.post("/api/session", json={"key": KEY})
    client.get(f"/debug?key={KEY}")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    first = next(line for line in lines if line.get("route") == "/api/dispatch-agent")
    assert first["room"] == "r"
    assert first["dispatch_id"].startswith("AD_")
    assert first["job_id"] == "AJ_stub"
    assert first["key"] == "owner"
    assert first["status"] == 200
    assert KEY not in log.getvalue()


@pytest.mark.parametrize("secret", [KEY, 'a"quoted\\key-\u00e9-0123456789'])
def test_a_secret_in_a_message_is_hidden(secret: str) -> None:
    """Whatever a message or traceback holds, a known secret is not written, escaped or not."""
    formatter = JsonFormatter([SecretStr(secret), None])
    facts = {"url": secret, "shown": repr(secret), "body": json.dumps({"key": secret})}
    record = logging.makeLogRecord({"msg": f"asked with {secret}", "facts": facts})
    line = json.loads(formatter.format(record))
    assert line["event"] == f"asked with {HIDDEN}"
    assert line["url"] == HIDDEN
    assert line["shown"][1:-1] == HIDDEN
    assert line["body"] == f'{{"key": "{HIDDEN}"}}'


def test_a_failed_dispatch_is_logged_with_its_ids(log: io.StringIO) -> None:
    """The log and the answer name the dispatches that the server made before it failed."""
    error = NoWorkerError("nobody is there", "start one")
    error.dispatch_ids = ("AD_1", "AD_2")
    answer = client_with(Failing(error)).post(
        "/api/dispatch-agent", headers=OWNER, json={"room": "r"}
    )
    assert answer.json()["dispatch_id"] == "AD_2"
    line = json.loads(log.getvalue().splitlines()[-1])
    assert line["dispatch_id"] == "AD_1 AD_2"
    assert line["outcome"] == "no_worker"


def test_events_of_the_lab_are_logged(log: io.StringIO) -> None:
    """What happens to agents and workers is in the service's log, with its ids."""
    EventLog().add(
        "agent_lost", room="r", detail="agent-AJ_1: gone", job_id="AJ_1", dispatch_id="AD_1"
    )
    line = json.loads(log.getvalue())
    assert (
        line.items()
        >= {
            "event": "agent_lost",
            "logger": "labvoice.events",
            "room": "r",
            "detail": "agent-AJ_1: gone",
            "job_id": "AJ_1",
            "dispatch_id": "AD_1",
        }.items()
    )


def test_a_fault_is_logged_with_its_request(log: io.StringIO) -> None:
    """The answer's request id leads to the traceback in the log."""
    client = client_with(Failing(ZeroDivisionError("a fault")))
    client.raise_server_exceptions = False  # type: ignore[attr-defined]
    answer = client.post("/api/dispatch-agent", headers=OWNER, json={"room": "r"})
    faults = [line for line in log.getvalue().splitlines() if "ZeroDivisionError" in line]
    assert len(faults) == 1
    assert json.loads(faults[0])["request_id"] == answer.headers["x-request-id"]
