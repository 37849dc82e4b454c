"""Calls with an agent that is not labvoice's, and does things its own way."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labvoice.bench.imports import find_calls, import_calls
from labvoice.caller.recorder import Recording
from labvoice.caller.tracks import BACKGROUND_TRACK
from labvoice.caller.turns import FILLER_GAP_S
from labvoice.lab import Lab
from labvoice.runs.remeasure import AGREES_S
from labvoice.speech.utterances import Utterance
from labvoice.stack.models.paced_model import REPLY
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.talking import LISTENS, PATIENCE_S, answered_turn

AGENT = Path(__file__).parent / "foreign_agent.py"


@pytest.fixture(scope="module")
async def foreign(lab: Lab) -> TargetAgent:
    """The agent, whose worker is registered."""
    return await lab.add_target(Target.program(AGENT))


@pytest.mark.parametrize("asked", [{"nameless": True}, {"nameless": True, "identity": "clerk"}])
async def test_an_agent_that_tells_no_name_is_known_by_its_job(
    lab: Lab, foreign: TargetAgent, asked: dict[str, Any]
) -> None:
    """It is confirmed by one dispatch, whatever its identity, and it stays until its call ends."""
    async with lab.call(agent_name=foreign, metadata=asked) as call:
        assert call.dispatch is not None
        assert call.dispatch.attempts == 1
        assert call.dispatch.dispatch_id
        assert call.agent_identity == call.dispatch.agent_identity
        again = await lab.dispatch(call.room_name, foreign.name)
        assert again.found
        assert again.agent_identity == call.agent_identity
        assert call.agent_identity
    listed = await lab.dispatcher.api.room.list_participants(_of(call.room_name))
    assert not listed.participants


@pytest.mark.parametrize("sound", ["background", "music"])
async def test_a_voice_is_heard_beside_the_background_players_track(
    lab: Lab, foreign: TargetAgent, recorded: list[Utterance], sound: str
) -> None:
    """Greeting and reply are those of the voice's track; both tracks are in what was heard.

    The voice is dated where the voice's track alone has it, at the player's default volume.
    """
    asked = {"greeting": "Hello, this is the shop.", sound: 1.0}
    async with lab.call(agent_name=foreign, metadata=asked) as call:
        assert "shop" in await call.hear_greeting(PATIENCE_S)
        turn = await answered_turn(call, recorded[0])
        assert turn.outcome == "ok"
        assert turn.reply == REPLY
        told = {event["event"] for event in call.session_events}
        assert {"agent_state_changed", "user_input_transcribed", "conversation_item_added"} <= told
        assert any("'background_audio'" in notice for notice in call.notices)
        voice, background = sorted(
            call.agent.ear.tracks.values(), key=lambda track: track.name == BACKGROUND_TRACK
        )
        assert background.name == BACKGROUND_TRACK
        assert background.listener.never_silent
        alone = {each.start_s for each in voice.listener.voices}
        assert {call.marks["greeting_heard"], turn.marks["reply_heard"]} <= alone


@pytest.mark.parametrize(
    ("untold", "transcript", "ready_by"),
    [
        (["events"], True, "agent_listening"),
        (["events", "text", "state"], False, "agent_audio_subscribed"),
    ],
)
async def test_a_turn_is_whole_without_what_the_agent_does_not_tell(
    lab: Lab,
    foreign: TargetAgent,
    recorded: list[Utterance],
    untold: list[str],
    transcript: bool,
    ready_by: str,
) -> None:
    """Words come from text streams, else not at all; state from the attribute, else by ear.

    The agent does not greet, which is found out once: no later call waits for it.
    """
    asked = {"untold": untold}
    silent = dataclasses.replace(
        foreign, target=dataclasses.replace(foreign.target, greeting_timeout_s=2.0)
    )
    for greets in (None, False):
        async with lab.call(agent_name=silent, metadata=asked) as call:
            assert call.greets is greets
            assert await call.hear_greeting() == ""
            assert call.greets is False
            assert call.ready_by == ready_by
            assert ("agent_listening" in call.marks) == (ready_by == "agent_listening")
            if greets is None:
                assert any("does not greet" in notice for notice in call.notices)
                continue
            turn = await answered_turn(call, recorded[0])
            assert turn.outcome == "ok"
            assert turn.voice_to_voice_s is not None
            assert bool(turn.transcript) == transcript
            assert (turn.reply == REPLY) == transcript
            assert (turn.word_error_rate is not None) == transcript
            assert turn.metrics == {}
            assert call.session_events == []
            assert any("hosts no session events" in notice for notice in call.notices)


@pytest.mark.parametrize("untold", [[], ["events", "text", "state"]])
async def test_a_filler_and_the_answer_are_two_figures(
    lab: Lab, foreign: TargetAgent, recorded: list[Utterance], untold: list[str]
) -> None:
    """By what the agent tells of its speech, else by the silence between."""
    asked = {"greeting": "Hello.", "filler": "Let me check.", "untold": untold}
    async with lab.call(agent_name=foreign, metadata=asked) as call:
        await call.hear_greeting()
        turn = await answered_turn(call, recorded[0])
        assert turn.outcome == "ok"
        assert turn.voice_to_voice_s is not None
        assert turn.answer_s is not None
        assert turn.answer_s > turn.voice_to_voice_s + FILLER_GAP_S
        assert turn.reply == ("" if untold else f"Let me check. {REPLY}")
        if not untold:
            assert turn.voice_to_voice_s < turn.metrics["e2e_latency"] < turn.answer_s


@LISTENS
async def test_a_sessions_report_and_recordings_are_measured_as_the_call_was(
    lab: Lab, foreign: TargetAgent, recorded: list[Utterance], tmp_path: Path
) -> None:
    """The report of livekit-agents has its words; by ear it is what was heard live.

    The recording that the agent made has no network in it. One from the caller's side, as another
    program records it, with the channels the other way round, is laid by the report.
    """
    for number in range(3):  # up to twice more where the machine's stalls upset the turn
        folder = tmp_path / str(number)
        folder.mkdir()
        asked = {"greeting": "Hello, this is the shop.", "report": str(folder)}
        async with lab.call(agent_name=foreign, metadata=asked) as call:
            await call.hear_greeting()
            await call.say(recorded[0])
            live = await call.hear()
            sound = call.recorder.recording()
        if not live.upset:
            break
    report = folder / "report.json"
    async with asyncio.timeout(PATIENCE_S):
        while not report.exists():  # the job writes it when it is over
            await asyncio.sleep(0.1)
    assert sound is not None
    assert live.voice_to_voice_s is not None
    there = tmp_path / "egress.wav"
    Recording(np.ascontiguousarray(sound.samples[:, ::-1]), 0.0).write(there)
    own = find_calls([report])
    assert [path.name for path in own[0].recordings] == ["audio.ogg"]
    found = []
    for name, calls in (("own", own), ("egress", find_calls([report, there], caller="right"))):
        run = await asyncio.to_thread(import_calls, calls, tmp_path / f"{name}.jsonl")
        (turn,) = run.notes.dropna(subset="turn").to_dict("records")
        assert (turn["transcript"], turn["reply"]) == (live.transcript, live.reply)
        assert "shop" in run.notes["greeting"].dropna().iloc[0]
        figures = run.frame.set_index("stage")["duration_s"]
        assert figures["e2e_latency"] == pytest.approx(live.metrics["e2e_latency"], abs=1e-3)
        assert set(run.frame["room"].astype(str)) == {call.room_name}
        found.append(figures["voice_to_voice"])
    assert 0 < found[0] < live.voice_to_voice_s
    assert found[1] == pytest.approx(live.voice_to_voice_s, abs=AGREES_S)


def _of(room: str) -> Any:
    from livekit import api

    return api.ListParticipantsRequest(room=room)
