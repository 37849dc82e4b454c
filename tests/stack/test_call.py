"""Real calls: LiveKit server, worker process, recognition, synthesis, audio both ways."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from livekit import api

from labvoice.caller.call import Call
from labvoice.caller.ear import SAMPLE_RATE_HZ
from labvoice.caller.turns import word_error_rate
from labvoice.errors import AgentLostError, LabvoiceError, NoReplyError
from labvoice.lab import Lab
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CALLER_CONNECTION_MARKS,
    TURN_MARKS,
    WORKER_CONNECTION_MARKS,
)
from labvoice.speech.embedded import load_moonshine
from labvoice.speech.utterances import SAMPLE_RATE, Utterance
from labvoice.stack.models.paced_model import REPLY
from tests.stack.talking import PATIENCE_S, answered_turn, was_broken


@pytest.fixture(scope="module")
async def spoken(lab: Lab, recorded: list[Utterance]) -> Call:
    """A call with two turns, hung up; up to twice more where the machine's stalls upset one."""
    for _ in range(3):
        call = await lab.call()
        try:
            await call.hear_greeting(PATIENCE_S)
            for utterance in recorded[:2]:
                await answered_turn(call, utterance)
        finally:
            await lab.end_call(call)
        if not any(was_broken(turn) or turn.upset for turn in call.turns):
            break
    return call


@pytest.mark.smoke
def test_every_connection_mark_is_set_in_order(spoken: Call) -> None:
    """Caller's and worker's marks are all there, and each chain is in its order."""
    assert set(spoken.marks) == {*CALLER_CONNECTION_MARKS, *WORKER_CONNECTION_MARKS}
    assert spoken.offset is not None
    slack = 2 * spoken.offset.uncertainty_s
    caller = [
        spoken.marks[name] for name in ("click", "token_issued", "room_connected", "mic_published")
    ]
    caller += [spoken.marks["dispatch_requested"], spoken.marks["dispatch_acknowledged"]]
    assert caller == sorted(caller)
    worker = [spoken.marks[n] for n in WORKER_CONNECTION_MARKS if n != "agent_track_published"]
    assert worker == sorted(worker)
    assert spoken.marks["dispatch_requested"] <= spoken.marks["job_received"] + slack
    assert spoken.marks["job_received"] <= spoken.marks["agent_visible"] + slack
    # The agent's own word that it listens may overtake the server's that it is there.
    assert spoken.marks["agent_visible"] <= spoken.marks["greeting_heard"]
    assert spoken.marks["agent_listening"] <= spoken.marks["greeting_heard"]


@pytest.mark.smoke
def test_the_dispatch_is_confirmed_with_ids(spoken: Call) -> None:
    """Dispatch, job and worker are named, and the agent says the same of itself."""
    dispatch = spoken.dispatch
    assert dispatch is not None
    assert dispatch.dispatch_id.startswith("AD_")
    assert dispatch.job_id.startswith("AJ_")
    assert dispatch.worker_id.startswith("AW_")
    assert dispatch.room_existed  # the caller was there first
    assert spoken.worker["job_id"] == dispatch.job_id
    assert spoken.worker["dispatch_id"] == dispatch.dispatch_id
    assert spoken.worker["worker_id"] == dispatch.worker_id


@pytest.mark.smoke
def test_the_agent_understands_and_answers(spoken: Call) -> None:
    """Each utterance is one turn, understood, and answered with the model's reply."""
    assert spoken.greeting == "Hello, how can I help you?"
    for turn in spoken.turns:
        assert turn.outcome == "ok"
        assert turn.user_messages == 1
        assert turn.word_error_rate is not None
        assert turn.word_error_rate <= 0.34
        assert turn.reply == REPLY
        told = [name for name in TURN_MARKS if name != "answer_heard"]  # there is no filler
        assert [turn.marks[name] for name in told] == sorted(turn.marks.values())
        assert set(AGENT_TURN_STAGES) == set(turn.metrics)
        assert all(value >= 0 for value in turn.metrics.values())


async def test_the_recording_holds_both_sides_at_their_marks(spoken: Call) -> None:
    """Every turn's speech is on the left, and the reply's first sound on the right, at its mark.

    A mark is when a sample left. The recording moves no sample for a stall that is over, so a frame
    that left late lies before its mark by as much.
    """
    recording = spoken.recorder.recording()
    assert recording is not None
    frames = np.abs(recording.samples[: len(recording.samples) // 240 * 240]).reshape(-1, 240, 2)
    loud = frames.max(axis=1) > 200  # shape (10 ms frames, 2)

    for turn in spoken.turns:
        marks = [turn.marks[m] for m in ("user_speech_start", "user_speech_end", "reply_heard")]
        start, end, reply = (round((mark_s - recording.start_s) * 100) for mark_s in marks)
        late = [spoken.media.microphone.late_s(mark_s, 0.1) * 100 for mark_s in marks]
        left, right = loud[:, 0], loud[:, 1]
        around = max(10, round(late[0]) + 3)
        assert abs(int(np.argmax(left[start - around :])) - around) <= 3 + late[0]
        assert abs(int(np.flatnonzero(left[: end + 20])[-1]) - end) <= 3 + late[1]
        assert abs(end + int(np.argmax(right[end:])) - reply) <= 3 + late[2]


@pytest.mark.smoke
async def test_the_reply_is_heard_as_speech(spoken: Call, lab: Lab) -> None:
    """What reaches the caller's ear, recognised, are the words of the reply."""
    turn = spoken.turns[0]
    audio, rate = spoken.heard_audio(turn)
    assert rate == SAMPLE_RATE_HZ
    waited_s = turn.marks["reply_heard"] - turn.marks["user_speech_start"]
    audio = audio[int((waited_s - 0.3) * rate) :]  # recognisers give up on long silence
    recogniser = await asyncio.to_thread(load_moonshine, lab.settings)
    at_16k = np.interp(
        np.arange(0, len(audio), rate / 16000), np.arange(len(audio)), audio.astype(np.float64)
    ).astype(np.int16)
    try:
        heard = await recogniser.transcribe(at_16k)
    finally:
        await recogniser.aclose()
    assert word_error_rate(REPLY, heard) <= 0.25


async def test_silence_makes_no_turn(lab: Lab) -> None:
    """The negative control: silence in, no turn and no reply."""
    silence = Utterance("", np.zeros(2 * SAMPLE_RATE, np.int16), SAMPLE_RATE, "file")
    call = await lab.call()
    try:
        await call.hear_greeting(PATIENCE_S)
        turn = await call.say(silence)
        with pytest.raises(NoReplyError, match="reply_heard did not happen within 3 s"):
            await call.hear(timeout_s=3)
    finally:
        await lab.end_call(call)
    assert turn.outcome == "no_reply"
    assert turn.user_messages == 0
    assert turn.transcript == ""
    assert turn.voice_to_voice_s is None


async def test_an_agent_that_leaves_is_said_to_be_lost(lab: Lab, recorded: list[Utterance]) -> None:
    """An agent that is removed in mid-call ends the wait at once, with the outcome agent_lost."""
    call = await lab.call()
    try:
        await call.hear_greeting(PATIENCE_S)
        turn = await call.say(recorded[0])
        assert call.dispatch is not None
        await lab.dispatcher.api.room.remove_participant(
            api.RoomParticipantIdentity(room=call.room_name, identity=call.dispatch.agent_identity)
        )
        with pytest.raises(AgentLostError, match="left the room"):
            await call.hear()
    finally:
        await lab.end_call(call)
    assert turn.outcome == "agent_lost"


async def test_hearing_before_saying_is_explained(lab: Lab) -> None:
    """`hear()` without `say()` tells what to do."""
    with pytest.raises(LabvoiceError, match=r"await call\.say"):
        await lab.new_call().hear()


@pytest.mark.smoke
async def test_a_call_that_is_left_takes_agent_and_room_with_it(
    lab: Lab, recorded: list[Utterance]
) -> None:
    """Nothing of a call is there after its `async with`; a second caller is told who is heard."""
    async with lab.call("one-room-for-two") as first:
        await first.hear_greeting(PATIENCE_S)
        async with lab.call("one-room-for-two") as second:
            assert second.identity != first.identity
            await second.say(recorded[0])
            with pytest.raises(NoReplyError) as caught:
                await second.hear(3.0)
            assert f"{first.identity!r} is in the room as well" in caught.value.observed
        await first.say(recorded[0])
        assert (await first.hear(PATIENCE_S)).reply
        listed = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
        assert first.room_name in [room.name for room in listed.rooms]
    listed = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    assert first.room_name not in [room.name for room in listed.rooms]
