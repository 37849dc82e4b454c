"""Calls that were recorded elsewhere: reports and recordings, measured as the lab's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from livekit.agents.llm import ChatContext, ChatMessage
from livekit.agents.voice.events import ConversationItemAddedEvent
from typer.testing import CliRunner

from labvoice.bench.imports import find_calls, import_calls, utterances
from labvoice.caller.ear import Voice
from labvoice.cli import app
from labvoice.errors import AudioFormatError, LabvoiceError, RunFileError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.report.html import write_report
from labvoice.runs.compare import compare
from labvoice.runs.remeasure import remeasure
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import load_settings
from labvoice.speech.detection import resample
from labvoice.speech.utterances import Utterance, human_utterances
from tests.unit.recorded_runs import HOST

RATE = 24000
BEGAN_S = 1_795_000_000.0
"""When the recording of a call began, in seconds since 1970."""
LATENCIES_S = (0.8, 1.3)
Samples = npt.NDArray[np.int16]


@pytest.fixture(scope="module")
def clauses() -> list[Utterance]:
    """What people say in these calls, read by a person."""
    return human_utterances(load_settings())[:3]


class Spoken(NamedTuple):
    """A clause in a call, by its first and last voiced sample, in seconds."""

    who: str
    start_s: float
    end_s: float


class Production(NamedTuple):
    """A call whose truth is known: both sides at 24 kHz, and what is said when."""

    caller: Samples
    agent: Samples
    said: list[Spoken]


@pytest.fixture(scope="module")
def production(clauses: list[Utterance]) -> Production:
    """The agent greets; the caller says something twice, and is answered twice."""
    said: list[Spoken] = []
    at_s, sides = (
        0.5,
        {"caller": np.zeros(40 * RATE, np.int16), "agent": np.zeros(40 * RATE, np.int16)},
    )
    for number, (who, wait_s) in enumerate(
        [
            ("agent", 0.0),
            ("caller", 1.0),
            ("agent", LATENCIES_S[0]),
            ("caller", 1.5),
            ("agent", LATENCIES_S[1]),
        ]
    ):
        clause = clauses[number % len(clauses)]
        samples = resample(clause.samples, clause.sample_rate, RATE)
        first, last = (
            each / clause.sample_rate for each in (clause.speech.first, clause.speech.last)
        )
        at_s += wait_s
        begin = round((at_s - first) * RATE)
        sides[who][begin : begin + len(samples)] += samples
        said.append(Spoken(who, at_s, at_s + last - first))
        at_s = said[-1].end_s
    end = round((at_s + 1.5) * RATE)
    return Production(sides["caller"][:end], sides["agent"][:end], said)


def stereo(path: Path, left: Samples, right: Samples, *, rate: int = RATE) -> Path:
    """Writes a recording with two channels."""
    both = [resample(each, RATE, rate) for each in (left, right)]
    soundfile.write(path, np.stack(both, axis=1), rate)
    return path


def messages(said: Sequence[Spoken], *, timed: bool = True) -> list[ChatMessage]:
    """What livekit-agents has of the call, whose recording began at BEGAN_S."""
    made = []
    for number, one in enumerate(said):
        start_s, end_s = BEGAN_S + one.start_s, BEGAN_S + one.end_s
        metrics: dict[str, Any] = {"started_speaking_at": start_s, "stopped_speaking_at": end_s}
        if one.who == "caller":
            metrics |= {"end_of_turn_delay": 0.4, "transcription_delay": 0.2}
            made.append(
                ChatMessage(role="user", content=[f"question {number}"], created_at=end_s + 0.4)
            )
        else:
            metrics |= {"llm_node_ttft": 0.2} | ({"e2e_latency": 0.7} if number else {})
            made.append(
                ChatMessage(role="assistant", content=[f"answer {number}"], created_at=start_s)
            )
        if timed:
            made[-1].metrics = metrics  # type: ignore[assignment]
    return made


def report(path: Path, items: list[ChatMessage], **changes: Any) -> Path:
    """Writes a report as `json.dumps(report.to_dict())` does."""
    added = []
    for item in items:
        is_agents = item.role == "assistant"
        at_s = (
            item.metrics.get("stopped_speaking_at", item.created_at)
            if is_agents
            else item.created_at
        )
        added.append(ConversationItemAddedEvent(item=item, created_at=at_s).model_dump())
    whole = {
        "job_id": "AJ_1",
        "room_id": "RM_1",
        "room": "shop-42",
        "events": added,
        "audio_recording_path": "/tmp/of/another/machine/audio.ogg",
        "audio_recording_started_at": BEGAN_S,
        "options": {"min_endpointing_delay": 0.4, "max_endpointing_delay": 3.0},
        "chat_history": ChatContext(items=list(items)).to_dict(exclude_timestamp=False),
        "usage": [
            {"type": "llm_usage", "provider": "openai", "model": "gpt-4.1-mini", "input_tokens": 9},
            {"type": "tts_usage", "provider": "cartesia", "model": "sonic-3"},
        ],
        "sdk_version": "1.8.9",
        "agent_name": "clerk",
    }
    path.write_text(json.dumps({**whole, **changes}), encoding="utf-8")
    return path


def heard(run: Run) -> list[float]:
    """The turns' voice-to-voice latencies, in seconds."""
    rows = run.frame
    found: list[float] = rows.loc[rows["stage"] == "voice_to_voice", "duration_s"].tolist()
    return found


@pytest.mark.parametrize(("rate", "channel"), [(48000, "left"), (16000, "right")])
def test_a_recording_is_measured_by_ear(
    tmp_path: Path, production: Production, rate: int, channel: str
) -> None:
    """Both latencies are right to 20 ms at any rate, and the other detector agrees."""
    sides = (production.caller, production.agent)
    left, right = sides if channel == "left" else sides[::-1]
    path = stereo(tmp_path / "call.wav", left, right, rate=rate)
    out, result = tmp_path / "run.jsonl", tmp_path / "result.json"
    command = ["import", str(path), "--caller-channel", channel, "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--json", str(result)])
    assert done.exit_code == 0, done.output
    run = Run.load(out)
    assert heard(run) == pytest.approx(LATENCIES_S, abs=0.02)
    assert list(run.outcomes["outcome"]) == ["ok", "ok", "ok"]
    assert "greeting_heard" in set(run.marks["mark"])
    assert json.loads(result.read_text())["stages"]["voice_to_voice"]["n"] == 2
    # What a recording does not tell is not there, rather than zero.
    assert {"voice_to_voice"} == set(run.frame["stage"])
    assert run.word_error_rate() is None
    again = remeasure(run)
    assert again.passed, repr(again)


def test_two_files_are_laid_beside_each_other(tmp_path: Path, production: Production) -> None:
    """Each has its own rate, and the agent's begins later, as tracks of egress do."""
    caller, agent = tmp_path / "caller.wav", tmp_path / "agent.wav"
    soundfile.write(caller, resample(production.caller, RATE, 48000), 48000)
    soundfile.write(agent, production.agent[round(0.25 * RATE) :], RATE)
    run = import_calls(find_calls([], (caller, agent), agent_delay_s=0.25), tmp_path / "run.jsonl")
    assert heard(run) == pytest.approx(LATENCIES_S, abs=0.02)


@pytest.mark.parametrize("own", [True, False])
def test_a_report_adds_words_figures_and_times(
    tmp_path: Path, production: Production, own: bool
) -> None:
    """Of the agent's own recording, or of another whose beginning the report does not know."""
    cut = 0 if own else round(0.375 * RATE)
    stereo(tmp_path / "audio.ogg", production.caller[cut:], production.agent[cut:], rate=48000)
    began_s = BEGAN_S if own else None
    path = report(
        tmp_path / "report.json", messages(production.said), audio_recording_started_at=began_s
    )
    run = import_calls(find_calls([path]), tmp_path / "run.jsonl")
    assert heard(run) == pytest.approx(LATENCIES_S, abs=0.02)
    turns = run.notes.dropna(subset="turn")
    assert turns["transcript"].tolist() == ["question 1", "question 3"]
    assert turns["reply"].tolist() == ["answer 2", "answer 4"]
    assert run.notes["greeting"].dropna().tolist() == ["answer 0"]
    stages = run.stage_summaries
    assert stages["e2e_latency", "production"].p50_s == pytest.approx(0.7)
    assert stages["transport", "production"].n == 2
    assert run.header.arms["production"]["llm_model"] == "gpt-4.1-mini"
    assert run.header.arms["production"]["min_endpointing_delay_s"] == 0.4
    assert set(run.frame["room"].astype(str)) == {"shop-42"}
    # The greeting is the first mark of the call.
    assert run.clicks[0] == pytest.approx(BEGAN_S + production.said[0].start_s, abs=0.05)
    assert "llm_model" in write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("events", [True, False])
def test_a_report_alone_has_livekits_figures(
    tmp_path: Path, production: Production, events: bool
) -> None:
    """What the caller heard is missing, and no latency is made of the agent's clock."""
    changes: dict[str, Any] = {} if events else {"events": []}
    path = report(tmp_path / "report.json", messages(production.said), **changes)
    run = import_calls(find_calls([path]), tmp_path / "run.jsonl")
    assert heard(run) == []
    summary = run.to_json()["stages"]
    assert summary["e2e_latency"]["p50_s"] == pytest.approx(0.7)
    assert summary["end_of_turn_delay"]["n"] == 2
    assert "voice_to_voice" not in summary
    assert run.recordings.empty
    assert list(run.recordings) == ["trial", "path", "start_s"]


def test_production_lies_beside_the_lab(tmp_path: Path, production: Production) -> None:
    """A run of the lab and imported calls are compared, once other machines are allowed."""
    path = stereo(tmp_path / "call.wav", production.caller, production.agent)
    there = import_calls(find_calls([path]), tmp_path / "there.jsonl", recording="none")
    with RunWriter(
        tmp_path / "here.jsonl", kind="turns", arms={"labvoice": {}}, host_facts=HOST
    ) as lab:
        for trial in range(3):
            lab.trial(trial, f"room-{trial}", "labvoice")
            lab.outcome(trial, "ok")
            lab.mark(trial, Mark("user_speech_end", 10.0), turn=0)
            lab.mark(trial, Mark("reply_heard", 11.0 + trial / 10), turn=0)
            lab.outcome(trial, "ok", turn=0)
    here = Run.load(tmp_path / "here.jsonl")
    with pytest.raises(RunFileError, match="different hosts: cpu unknown and Example"):
        compare(there, here)
    comparison = compare(there, here, allow_different_hosts=True)
    (row,) = (row for row in comparison.stages if row.stage == "voice_to_voice")
    assert row.base_p50_s == pytest.approx(np.median(LATENCIES_S), abs=0.02)
    assert row.new_p50_s == pytest.approx(1.1)


def test_a_goodbye_is_no_turn_and_a_silence_is_a_failure(
    tmp_path: Path, clauses: list[Utterance]
) -> None:
    """Whether nothing answered is known only if the recording goes on."""
    words = resample(clauses[0].samples, clauses[0].sample_rate, RATE)
    for silence_s, outcomes in ((2.0, ["ok"]), (7.0, ["ok", "no_reply"])):
        length = len(words) + round(silence_s * RATE)
        caller, agent = np.zeros((2, length), np.int16)
        caller[: len(words)] = words
        path = stereo(tmp_path / f"{silence_s:g}.wav", caller, agent)
        run = import_calls(find_calls([path]), tmp_path / f"{silence_s:g}.jsonl", recording="none")
        assert run.outcomes["outcome"].tolist() == outcomes


def test_what_is_an_utterance() -> None:
    """Pauses do not end it, the agent's voice does; what asks for nothing is none."""
    agent = [Voice(5.0, 9.0), Voice(20.0, 26.0), Voice(40.0, 43.0)]
    caller = [
        Voice(1.0, 2.0),
        Voice(3.0, 4.0),  # after a pause
        Voice(12.0, 14.0),
        Voice(21.0, 21.4),  # "mm-hm": the agent goes on
        Voice(30.0, 31.0),
        Voice(42.0, 44.0),  # an interruption: the agent yields
    ]
    said, over_agent = utterances(caller, agent)
    assert said == [(1.0, 4.0), (12.0, 14.0), (30.0, 31.0), (42.0, 44.0)]
    assert over_agent == 1


def test_reports_and_recordings_are_put_together(tmp_path: Path, production: Production) -> None:
    """By the name that the report gives, by the same name, or as the only ones."""
    items = messages(production.said)
    first = report(tmp_path / "a.json", items, audio_recording_path="/far/away/first.ogg")
    second = report(tmp_path / "b.json", items, audio_recording_path=None)
    sounds = [tmp_path / name for name in ("b.ogg", "first.ogg", "third.ogg")]
    for path in sounds:
        path.touch()
    calls = find_calls([first, second, *sounds], caller="right")
    assert [(call.report, call.recordings) for call in calls] == [
        (first, (sounds[1],)),
        (second, (sounds[0],)),
        (None, (sounds[2],)),
    ]
    assert {call.caller for call in calls} == {"right"}
    (only,) = find_calls([second, sounds[2]])
    assert only.recordings == (sounds[2],)
    (sides,) = find_calls([second], (sounds[0], sounds[1]), agent_delay_s=0.5)
    assert (sides.report, sides.recordings) == (second, (sounds[0], sounds[1]))
    with pytest.raises(UsageError, match="no file is given"):
        find_calls([])
    with pytest.raises(UsageError, match=r"missing\.ogg is not a file"):
        find_calls([tmp_path / "missing.ogg"])


def test_bad_input_is_one_error_with_a_hint(tmp_path: Path, production: Production) -> None:
    """Each says what is wrong with which file."""
    mono, same, empty, text = (
        tmp_path / f"{name}.wav" for name in ("mono", "same", "empty", "text")
    )
    soundfile.write(mono, production.caller, RATE)
    stereo(same, production.caller, production.caller)
    stereo(empty, *np.zeros((2, 0), np.int16))
    text.write_text("no sound")
    quiet = stereo(tmp_path / "quiet.wav", *np.zeros((2, RATE), np.int16))
    call = stereo(tmp_path / "call.wav", production.caller, production.agent)
    said, broken, other = production.said, tmp_path / "broken.json", tmp_path / "other.json"
    broken.write_text("{")
    other.write_text('{"format": 1}')
    timeless = report(
        tmp_path / "timeless.json",
        messages(said, timed=False),
        audio_recording_path=None,
        audio_recording_started_at=None,
    )
    late = [one._replace(start_s=one.start_s * 2.5) for one in said]
    misfit = report(tmp_path / "misfit.json", messages(late))
    cases: list[tuple[list[Path], type[LabvoiceError], str]] = [
        ([mono], AudioFormatError, r"mono\.wav has 1 channel: caller and agent"),
        ([same], AudioFormatError, "the same sound on both channels"),
        ([empty], AudioFormatError, "holds no samples"),
        ([text], AudioFormatError, "not a readable audio file"),
        ([quiet], AudioFormatError, "no voice is heard"),
        ([broken], RunFileError, r"broken\.json is not a session report"),
        ([other], RunFileError, "not a session report: room: Field required"),
        ([timeless], RunFileError, "has no times: no message has LiveKit's figures"),
        ([timeless, call], RunFileError, "no times by which its recording could be laid"),
        ([misfit, call], RunFileError, "do not fit: of 3 messages"),
    ]
    for files, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            import_calls(find_calls(files), tmp_path / "run.jsonl")
        assert caught.value.hint
        assert caught.value.exit_code == 2
    assert not (tmp_path / "run.jsonl").exists()
    for wrong in (["--caller", str(mono)], [str(call), "--caller-channel", "middle"]):
        result = CliRunner().invoke(app, ["import", *wrong])
        assert isinstance(result.exception, UsageError)
