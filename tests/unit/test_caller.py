"""The caller's parts without a server: outcomes of turns, clocks, a microphone that is off."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.caller.call import Call
from labvoice.caller.clock import measure_offset
from labvoice.caller.ear import SAMPLE_RATE_HZ
from labvoice.caller.microphone import Microphone
from labvoice.caller.turns import Item, Turn
from labvoice.concurrency import poll
from labvoice.dispatch import Dispatcher
from labvoice.errors import AgentLostError, LabvoiceError, NoReplyError, StageTimeoutError
from labvoice.protocol.vocabulary import RPC_CLOCK
from labvoice.show import call_facts
from labvoice.speech.utterances import Utterance

_SKEW_S = 1e6


class _Answering:
    """A local participant whose agent answers with a wall clock of its own, some rounds late.

    The caller's clock stands at `now_s`; only answers make time pass.
    """

    def __init__(self, delays_s: list[float]) -> None:
        self.delays_s = delays_s
        self.now_s = 1_000.0

    async def perform_rpc(self, *, method: str, **_: Any) -> str:
        assert method == RPC_CLOCK
        wall_s = self.now_s + _SKEW_S  # asked for at once; it is the answer that comes late
        self.now_s += self.delays_s.pop(0) if self.delays_s else 0.01
        return json.dumps({"wall_s": wall_s})


async def test_a_skewed_clock_is_moved_by_the_shortest_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent's instant lands on the caller's clock within the uncertainty that is told."""
    agent = _Answering([0.2, 0.1])
    clock = SimpleNamespace(monotonic=lambda: agent.now_s)
    monkeypatch.setattr("labvoice.caller.clock.time", clock)
    room = cast("rtc.Room", SimpleNamespace(local_participant=agent))
    offset = await measure_offset(room, "agent")
    assert offset.uncertainty_s == pytest.approx(0.005)  # not that of the slow rounds
    assert (
        abs(offset.to_caller("job_received", 7.0 + _SKEW_S).at_s - 7.0)
        <= offset.uncertainty_s + 1e-6
    )


async def test_a_microphone_that_is_off_says_so() -> None:
    """Playing before it is published or after it was closed is an error, and waits for nothing."""
    microphone = Microphone()
    with pytest.raises(LabvoiceError, match="microphone is not on"):
        await microphone.play(np.zeros(480, np.int16), 0, 479)
    await microphone.aclose()
    with pytest.raises(LabvoiceError, match="microphone is not on"):
        await microphone.play(np.zeros(480, np.int16), 0, 479)


async def test_a_microphone_that_rests_sends_only_what_is_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sends silence until it is heard and after speech, and what is played at once and whole."""
    sent: list[bool] = []

    async def send(_: object, frame: rtc.AudioFrame) -> None:
        sent.append(any(frame.data))

    heard = asyncio.Event()

    class Local:
        async def publish_track(self, *_: object) -> object:
            return SimpleNamespace(wait_for_subscription=heard.wait)

    monkeypatch.setattr("labvoice.caller.microphone.send_frame", send)
    monkeypatch.setattr("labvoice.caller.microphone.REST_AFTER_S", 0.0)
    microphone = Microphone()
    microphone.rests = True
    await microphone.publish(cast("rtc.Room", SimpleNamespace(local_participant=Local())))
    assert await poll(lambda: len(sent) >= 3, 2.0, 0.001)
    assert not any(sent)
    heard.set()

    async def rests() -> bool:
        sent.clear()
        await asyncio.sleep(0.05)
        return not sent

    assert await poll(rests, 5.0, 0.0)
    start_s, end_s = await microphone.play(np.ones(480 * 4, np.int16), 0, 480 * 4 - 1)
    assert sent.count(True) == 4
    assert end_s - start_s > 0
    await microphone.aclose()


def _call() -> Call:
    return Call(
        url="ws://127.0.0.1:9",
        api_key="key",
        api_secret=SecretStr("secret"),
        dispatcher=Dispatcher("ws://127.0.0.1:9", "key", SecretStr("secret")),
        room="room",
        agent_name="agent",
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """A microphone that sends nothing, and puts sample 0 of an utterance at second 1."""

    async def play(_: Microphone, __: object, first: int, last: int) -> tuple[float, float]:
        return 1.0 + first / 48000, 1.0 + last / 48000

    monkeypatch.setattr(Microphone, "play", play)


async def _spoken() -> Call:
    """A call in which the user has spoken from second 1 to second 2."""
    call = _call()
    samples = np.random.default_rng(1).normal(0, 0.1, 48000)
    await call.say(Utterance("Hello", samples, 48000, "noise"))
    return call


def _agent_sounds(call: Call, start_s: float, end_s: float) -> None:
    """The caller hears a tone of the agent's, and silence before and after it."""
    if "voice" not in call.agent.ear.tracks:
        call.agent.ear.add("voice", name="voice", publisher="agent")
    listener = call.agent.ear.tracks["voice"].listener
    frame = SAMPLE_RATE_HZ // 100
    tone = (8000 * np.sin(np.arange(frame) * 2 * np.pi * 500 / SAMPLE_RATE_HZ)).astype(np.int16)
    for at_s in np.arange(start_s - 0.5, end_s + 0.6, 0.01):
        sounds = start_s <= at_s < end_s
        listener.feed(tone if sounds else np.zeros(frame, np.int16), float(at_s))


def test_a_figure_that_cannot_be_is_shown_as_such() -> None:
    """LiveKit's figure of a turn that is negative or longer than the turn says so."""
    metrics = {"end_of_turn_delay": 203.4, "llm_node_ttft": -1.0, "tts_node_ttfb": 0.1}
    marks = {"user_speech_start": 11.0, "user_speech_end": 13.0, "reply_heard": 13.7}
    facts = call_facts(
        "Call",
        "room",
        "ended",
        strategy="sequential",
        marks={},
        greeting="",
        turns=[Turn(0, "Hello.", marks, metrics)],
        troubles=[],
    )
    figures = "end_of_turn_delay 203400 (cannot be), llm_node_ttft -1000 (cannot be), "
    assert facts.rows[-1][1] == f"voice to voice 700 ms, {figures}tts_node_ttfb 100"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoReplyError, "no_reply"),
        (AgentLostError, "agent_lost"),
        (StageTimeoutError, "error"),
    ],
)
@pytest.mark.usefixtures("played")
async def test_a_turn_that_was_not_heard_to_its_end_is_not_ok(
    error: type[LabvoiceError], outcome: str
) -> None:
    """Whatever ends the hearing early, the turn does not count as answered."""
    call = await _spoken()
    if outcome == "agent_lost":
        call.agent.gone = "the agent left the room"
    if outcome == "error":
        _agent_sounds(call, 2.5, 3.0)
        call.reports.hosts_session = True  # then the text of the reply is waited for
    with pytest.raises(error):
        await call.hear(timeout_s=0.01)
    assert call.turns[0].outcome == outcome


@pytest.mark.usefixtures("played")
async def test_marks_of_a_turn_are_told_as_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply's onset is told before anybody waits for the reply's end."""
    call = await _spoken()
    told: list[str] = []
    call.on_turn_mark = lambda turn, mark: told.append(f"{turn.number} {mark.name}")

    async def never_ends() -> None:
        raise StageTimeoutError("the end of the agent's speech", 60, "it still speaks")

    _agent_sounds(call, 2.5, 3.0)
    monkeypatch.setattr(call, "hear_end", never_ends)
    with pytest.raises(StageTimeoutError):
        await call.hear()
    assert told == ["0 reply_heard"]
    assert call.turns[0].marks["reply_heard"] == pytest.approx(2.5, abs=0.02)


@pytest.mark.usefixtures("played")
async def test_a_doubtful_end_of_speech_is_told_on_its_turn() -> None:
    """What was done to a recording, and that its end is uncertain, stand on the turn and call."""
    call = _call()
    tone = 0.5 * np.sin(np.arange(4800) / 20)
    turn = await call.say(Utterance("", np.column_stack([tone, tone]), 48000, "mine"))
    assert turn.notice.startswith("its two channels hold the same audio")
    assert "the end of speech is uncertain: no speech is detected" in turn.notice
    assert f"turn 1: {turn.notice}" in repr(call)
    assert turn.marks["user_speech_end"] == pytest.approx(1.1, abs=0.001)


def test_a_reply_into_the_callers_turn_has_no_latency() -> None:
    """A latency is never negative: it is measured, or there is none."""
    turn = Turn(0, "Hello", {"user_speech_end": 2.0, "reply_heard": 2.5})
    assert turn.voice_to_voice_s == 0.5
    turn.marks["reply_heard"] = 1.5
    assert turn.voice_to_voice_s is None
    assert Turn(0, "Hello").voice_to_voice_s is None


@pytest.mark.usefixtures("played")
async def test_a_reply_that_begins_too_early_makes_its_turn_interrupted() -> None:
    """The reply to the rest of a split utterance belongs to the same turn, and dates it."""
    call = await _spoken()
    turn = call.turns[0]
    told: list[float] = []
    call.on_turn_mark = lambda _, mark: told.append(mark.at_s)
    call.reports.add(Item("u", "user", "Oh"))
    _agent_sounds(call, 1.5, 1.8)
    call.reports.add(Item("a", "assistant", "Well", interrupted=True))
    call.reports.add(Item("b", "user", "Hello"))
    hearing = asyncio.create_task(call.hear())
    await asyncio.sleep(0)
    _agent_sounds(call, 2.8, 3.3)
    call.reports.add(Item("c", "assistant", "Sure."))
    assert await hearing is turn
    assert turn.outcome == "interrupted"
    assert told == [turn.marks["reply_heard"], turn.marks["reply_end"]]
    assert told == [pytest.approx(2.8, abs=0.02), pytest.approx(3.3, abs=0.02)]
    assert turn.reply == "Well Sure."


@pytest.mark.usefixtures("played")
async def test_the_reply_to_the_first_part_is_not_the_reply_to_the_whole() -> None:
    """Where an agent answers what was said before a pause, the reply to the rest is heard too."""
    call = await _spoken()
    turn = call.turns[0]
    message = {"event": "conversation_item_added", "item": {"message": {"role": "USER"}}}
    call.session_events.append({**message, "heard_s": 1.5})
    call.reports.add(Item("u", "user", "On"))
    _agent_sounds(call, 2.3, 2.8)
    call.reports.add(Item("a", "assistant", "On which day?"))
    hearing = asyncio.create_task(call.hear())
    assert not (await asyncio.wait([hearing], timeout=0.1))[0]
    call.reports.add(Item("b", "user", "Tuesday"))
    assert not (await asyncio.wait([hearing], timeout=0.1))[0]
    _agent_sounds(call, 4.0, 4.5)
    call.reports.add(Item("c", "assistant", "It is booked."))
    assert await hearing is turn
    assert turn.reply == "On which day? It is booked."
    assert turn.user_messages == 2
    assert turn.marks["reply_end"] == pytest.approx(4.5, abs=0.02)


@pytest.mark.parametrize(("gone", "error"), [("it left", AgentLostError), ("", LabvoiceError)])
async def test_an_agent_that_does_not_answer_is_lost_if_it_left(
    monkeypatch: pytest.MonkeyPatch, gone: str, error: type[LabvoiceError]
) -> None:
    """An RPC that fails is an outcome of the call, not an exception of the SDK's."""
    agent = SimpleNamespace(
        identity="agent",
        kind=rtc.ParticipantKind.PARTICIPANT_KIND_AGENT,
        attributes={"labvoice.dispatch_id": "AD_1"},
        track_publications={},
    )

    class Refusing:
        async def perform_rpc(self, **_: Any) -> str:
            raise rtc.RpcError(1503, "Recipient disconnected")

    monkeypatch.setattr(rtc.Room, "isconnected", lambda _: True)
    monkeypatch.setattr(rtc.Room, "remote_participants", {"agent": agent})
    monkeypatch.setattr(rtc.Room, "local_participant", Refusing())
    call = _call()
    call.agent.on_participant(cast("rtc.RemoteParticipant", agent))
    call.agent.gone = gone
    with pytest.raises(LabvoiceError, match="Recipient disconnected") as caught:
        await call.until_memory()
    assert type(caught.value) is error
