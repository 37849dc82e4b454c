"""What a browser measured becomes a run like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from labvoice.settings import Settings
from labvoice.widgets.call import BrowserCall
from labvoice.widgets.record import CallRecord, write_run

SENT: dict[str, Any] = {
    "call_id": "0123456789abcdef",
    "room": "browser-1",
    "strategy": "sequential",
    "letta_agent_id": "",
    "marks": {
        "click": {"t_s": 100.0, "clock": "caller", "uncertainty_s": 0},
        "dispatch_requested": {"t_s": 100.4, "clock": "caller", "uncertainty_s": 0},
        "job_received": {"t_s": 100.6, "clock": "worker", "uncertainty_s": 0.001},
        "agent_listening": {"t_s": 100.8, "clock": "caller", "uncertainty_s": 0},
        "something_new": {"t_s": 100.9, "clock": "caller", "uncertainty_s": 0},
    },
    "turns": [
        {
            "number": 0,
            "typed": False,
            "said": "",
            "marks": {"user_speech_start": 103, "user_speech_end": 105, "reply_heard": 105.9},
            "metrics": {"e2e_latency": 0.6, "llm_node_ttft": 0.2},
            "transcript": "How are you?",
            "reply": "Well, thank you.",
            "user_messages": 1,
            "outcome": "ok",
        }
    ],
    "notes": {"dispatch_id": "AD_1"},
    "outcome": "ok",
    "detail": "",
    "ended": True,
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The defaults."""
    return Settings(cache_dir=tmp_path)


def test_a_browser_call_has_the_stages_of_a_simulated_one(settings: Settings) -> None:
    """Connection, turn, LiveKit's figures and the rest, in the columns of every run."""
    call = BrowserCall(CallRecord.model_validate(SENT), settings)
    frame = call.frame.set_index("stage")["duration_s"]
    assert frame["connection"] == pytest.approx(0.8)
    assert frame["job_request"] == pytest.approx(0.2)
    assert frame["voice_to_voice"] == pytest.approx(0.9)
    assert frame["transport"] == pytest.approx(0.3)
    assert {"run_id", "arm", "llm", "outcome"} <= set(call.frame)
    assert "voice to voice 900 ms" in repr(call)
    assert "connection" in call._repr_html_()
    assert next(iter(call.marks)) == "click"


def test_a_call_that_ended_is_kept_as_a_run_file(settings: Settings, tmp_path: Path) -> None:
    """Its file says that the caller was a browser."""
    call = BrowserCall(CallRecord.model_validate(SENT), settings)
    call.save(tmp_path)
    assert call.run.header.config["caller"] == "browser"
    assert call.run.complete


def test_a_call_without_an_agent_stays_in_the_data(settings: Settings, tmp_path: Path) -> None:
    """A failed connection is a row with its outcome."""
    record = CallRecord.model_validate(
        {**SENT, "marks": {"click": SENT["marks"]["click"]}, "turns": [], "outcome": "no_worker"}
    )
    write_run(record, tmp_path / "call.jsonl", settings)
    run = BrowserCall(record, settings).run
    assert set(run.frame["outcome"]) == {"no_worker"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"call_id": "../../etc/passwd"},
        {"marks": {"click": {"t_s": "soon"}}},
        {"marks": {"click": {"t_s": float("nan")}}},
        {"unknown": 1},
        {"turns": [{"number": -1}]},
    ],
)
def test_a_record_that_cannot_be_right_is_refused(wrong: dict[str, Any]) -> None:
    """What a page sends is checked, for its id becomes a file's name."""
    with pytest.raises(ValidationError):
        CallRecord.model_validate({**SENT, **wrong})
