"""What a browser measured becomes a run like any other."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import SecretStr, ValidationError

from labvoice.bench.arms import DEFAULT
from labvoice.bench.facts import arm_columns
from labvoice.bench.record import record_call
from labvoice.caller.call import Call
from labvoice.caller.recorder import check_recording
from labvoice.caller.turns import Turn
from labvoice.dispatch import Dispatcher
from labvoice.errors import LabvoiceError, RunFileError, UsageError
from labvoice.lab import Lab
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.lines import FRAME_COLUMNS
from labvoice.settings import Settings
from labvoice.widgets.call import BrowserCall
from labvoice.widgets.record import CallRecord, write_run
from labvoice.widgets.sound import Piece

SENT: dict[str, Any] = {
    "call_id": "0123456789abcdef",
    "room": "browser-1",
    "strategy": "sequential",
    "letta_agent_id": "",
    "marks": [
        {"name": "click", "at_s": 100.0, "clock": "caller", "uncertainty_s": 0},
        {"name": "dispatch_requested", "at_s": 100.4, "clock": "caller", "uncertainty_s": 0},
        {"name": "job_received", "at_s": 100.6, "clock": "worker", "uncertainty_s": 0.001},
        {"name": "agent_listening", "at_s": 100.8, "clock": "caller", "uncertainty_s": 0},
        {"name": "something_new", "at_s": 100.9, "clock": "caller", "uncertainty_s": 0},
    ],
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


def simulated_call(settings: Settings) -> tuple[Call, Lab]:
    """A call as the simulated caller leaves it, with the same figures, and the lab it was in."""
    secret = SecretStr("not-a-real-secret-but-long-enough")
    call = Call(
        url="ws://127.0.0.1:9",
        api_key="key",
        api_secret=secret,
        dispatcher=Dispatcher("ws://127.0.0.1:9", "key", secret),
        room="lab-1",
        agent_name=settings.agent_name,
        strategy="concurrent",
    )
    call.connection_marks |= {
        mark["name"]: Mark(**mark) for mark in SENT["marks"] if mark["name"] != "something_new"
    }
    turn = dict(SENT["turns"][0])
    del turn["typed"]
    call.turns.append(Turn(**turn))
    return call, Lab(settings=settings)


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
    assert next(iter(call.marks)) == "click"


async def test_all_ways_to_record_a_call_give_the_same_columns(
    settings: Settings, tmp_path: Path
) -> None:
    """A browser's call, a recorded one and a benchmark's arm can be laid beside each other."""
    simulated, lab = simulated_call(settings)
    recorded = lab.bench.record(simulated, tmp_path / "call.jsonl").frame
    own = BrowserCall(CallRecord.model_validate(SENT), settings).frame
    assert list(own) == list(recorded)
    assert set(own["strategy"]) == {"sequential"}
    assert set(recorded["strategy"]) == {"concurrent"}
    assert set(own) == set(FRAME_COLUMNS) | set(arm_columns(settings, DEFAULT))


async def test_calls_show_the_same_as_text_and_as_html(settings: Settings) -> None:
    """State, marks, transcripts, figures and what went wrong: of a browser's call and of ours."""
    sent = {**SENT, "detail": "The agent <left> the room."}
    own = BrowserCall(CallRecord.model_validate(sent), settings)
    simulated, _ = simulated_call(settings)
    simulated.failure = "The agent <left> the room."
    for call in (own, simulated):
        shown = html.unescape(call._repr_html_())
        for words in (
            "1 turn",
            "click 0",
            "agent_listening 800",
            "How are you?",
            "Well, thank you.",
            "voice to voice 900 ms, e2e_latency 600",
            "The agent <left> the room.",
        ):
            assert words in repr(call)
            assert words in shown
        assert "<left>" not in call._repr_html_()


async def test_a_simulated_call_that_is_over_shows_its_recording(settings: Settings) -> None:
    """While it is under way, to draw it would disturb it; `listen` does all the same."""
    call, _ = simulated_call(settings)
    with pytest.raises(LabvoiceError, match="nothing was recorded"):
        call.listen()
    for number in range(250):
        call.recorder.sent(np.full(480, 900, np.int16), 100.0 + number / 100)
    assert "<audio" not in call._repr_html_()
    assert [words.who for words in call.listen().words] == []
    await call.hang_up()
    assert "<audio" in call._repr_html_()
    assert "agent_listening" in {mark.name for mark in call.listen().marks}


async def test_a_call_writes_its_recording_when_it_ends(settings: Settings, tmp_path: Path) -> None:
    """A file that cannot be written is a notice, and the call ends all the same."""
    (tmp_path / "file").touch()
    for path, kept in ((tmp_path / "new" / "call.wav", True), (tmp_path / "file" / "a.ogg", False)):
        call, _ = simulated_call(settings)
        call.recorder.sent(np.full(480, 900, np.int16), 100.0)
        call.recording_path = check_recording(path)
        await call.end()
        assert path.is_file() == kept
        assert any("cannot be written" in notice for notice in call.notices) != kept
    with pytest.raises(UsageError, match=r"call\.mp3"):
        check_recording(Path("call.mp3"))


async def test_no_key_that_an_error_quotes_is_recorded(settings: Settings, tmp_path: Path) -> None:
    """A session's error is the endpoint's own sentence, which may have the key in it."""
    known = settings.model_copy(update={"openai_api_key": SecretStr("sk-of-the-user")})
    call, _ = simulated_call(known)
    call.session_events.append({"event": "error", "message": "sk-of-the-user is no key"})
    path = tmp_path / "call.jsonl"
    run = record_call(known, call, path)
    assert "*** is no key" in run.notes["session_events"].dropna().iloc[0]
    assert "sk-of-the-user" not in path.read_text(encoding="utf-8")


def test_what_was_typed_has_no_word_error_rate(settings: Settings) -> None:
    """Nobody had to recognise it, so it must not make the recogniser look better."""
    typed = {**SENT["turns"][0], "typed": True, "said": "Hello", "transcript": "Hello"}
    record = CallRecord.model_validate({**SENT, "turns": [typed]})
    assert BrowserCall(record, settings).run.word_error_rate() is None


def test_a_call_that_could_not_be_saved_can_still_be_read(
    settings: Settings, tmp_path: Path
) -> None:
    """A save that fails says so and loses nothing."""
    call = BrowserCall(CallRecord.model_validate(SENT), settings)
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RunFileError, match="cannot be written"):
        call.save(tmp_path / "runs")
    assert call.path is None
    assert "voice_to_voice" in set(call.frame["stage"])


async def test_a_lab_keeps_the_figures_of_old_calls_without_their_audio(settings: Settings) -> None:
    """Only the last few calls keep what they heard; every call keeps its turns."""
    lab = Lab(settings=settings)
    for number in range(8):
        call = BrowserCall(CallRecord.model_validate(SENT), settings) if number == 2 else None
        lab.remember(call or simulated_call(settings)[0])
    assert sum(isinstance(call, Call) for call in lab.recent_calls) == 4
    assert [len(call.turns) for call in lab.recent_calls] == [1] * 8


def test_a_call_that_ended_is_kept_as_a_run_file(settings: Settings, tmp_path: Path) -> None:
    """Its file says that the caller was a browser."""
    call = BrowserCall(CallRecord.model_validate(SENT), settings)
    call.save(tmp_path)
    assert call.run.header.config["caller"] == "browser"
    assert call.run.complete


def test_a_call_without_an_agent_stays_in_the_data(settings: Settings, tmp_path: Path) -> None:
    """A failed connection is a row with its outcome."""
    record = CallRecord.model_validate(
        {**SENT, "marks": SENT["marks"][:1], "turns": [], "outcome": "no_worker"}
    )
    write_run(record, tmp_path / "call.jsonl", settings)
    run = BrowserCall(record, settings).run
    assert set(run.frame["outcome"]) == {"no_worker"}


def piece(first: int, samples: list[int], **more: Any) -> Piece:
    """A piece as the page sends it."""
    sent = {"call_id": SENT["call_id"], "first": first, "rate_hz": 24000, "start_s": 100.5}
    return Piece.model_validate({**sent, "buffers": [np.array(samples, "<i2").tobytes()], **more})


def test_what_the_page_recorded_is_beside_the_run(settings: Settings, tmp_path: Path) -> None:
    """Pieces make one recording on the marks' clock in any order; a lost one is silence."""
    kept = settings.model_copy(update={"recording": "wav"})
    call = BrowserCall(CallRecord.model_validate(SENT), kept)
    call.sound.add(piece(4, [5, -5, 6, -6]))
    call.sound.add(piece(0, [1, -1, 2, -2]))
    call.save(tmp_path)
    (row,) = call.run.recordings.to_dict("records")
    samples, rate = soundfile.read(row["path"], dtype="int16")
    assert rate == 24000
    assert samples.tolist() == [[1, -1], [2, -2], [0, 0], [0, 0], [5, -5], [6, -6]]
    assert row["start_s"] == pytest.approx(0.5)
    assert "<audio" in call._repr_html_()


def test_a_page_of_another_sample_rate_is_recorded_too(settings: Settings, tmp_path: Path) -> None:
    """A machine at 44.1 kHz records at 22.05 kHz, which becomes 24 kHz."""
    call = BrowserCall(CallRecord.model_validate(SENT), settings)
    call.sound.add(piece(0, [1000] * 44100, rate_hz=22050))
    recording = call.sound.recording()
    assert recording is not None
    assert recording.end_s - recording.start_s == pytest.approx(1.0)


def test_a_call_that_is_not_to_be_recorded_is_not(settings: Settings, tmp_path: Path) -> None:
    """Neither where the settings say so, nor where the page sent nothing."""
    for recording, sound in (("none", [1, 1]), ("ogg", None)):
        kept = settings.model_copy(update={"recording": recording})
        call = BrowserCall(CallRecord.model_validate(SENT), kept)
        if sound is not None:
            call.sound.add(piece(0, sound))
        call.save(tmp_path / recording)
        assert call.run.recordings.empty
        with pytest.raises(RunFileError, match="no recording"):
            call.listen()
        assert "<audio" not in call._repr_html_()


@pytest.mark.parametrize("wrong", [{"first": -1}, {"rate_hz": 1}, {"buffers": []}, {"more": 1}])
def test_a_piece_that_cannot_be_right_is_refused(wrong: dict[str, Any]) -> None:
    """As every request of a page is checked."""
    with pytest.raises(ValidationError):
        Piece.model_validate({**vars(piece(0, [0, 0])), **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"call_id": "../../etc/passwd"},
        {"marks": [{"name": "click", "at_s": "soon"}]},
        {"marks": [{"name": "click", "at_s": float("nan")}]},
        {"marks": [{"name": "click", "t_s": 100.0}]},
        {"unknown": 1},
        {"turns": [{"number": -1}]},
    ],
)
def test_a_record_that_cannot_be_right_is_refused(wrong: dict[str, Any]) -> None:
    """What a page sends is checked, for its id becomes a file's name."""
    with pytest.raises(ValidationError):
        CallRecord.model_validate({**SENT, **wrong})
