"""The caller's parts without a server: outcomes of turns, clocks, a microphone that is off."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.caller.call import Call
from labvoice.caller.clock import measure_offset
from labvoice.caller.microphone import Microphone
from labvoice.caller.turns import Item, Turn
from labvoice.dispatch import Dispatcher
from labvoice.errors import AgentLostError, LabvoiceError, NoReplyError, StageTimeoutError
from labvoice.protocol.vocabulary import RPC_CLOCK
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


def _call() -> Call:
    dispatcher = Dispatcher("ws://127.0.0.1:9", "key", SecretStr("secret"))
    call = Call(
        url="ws://127.0.0.1:9",
        api_key="key",
        api_secret=SecretStr("secret"),
        dispatcher=dispatcher,
        room="room",
        agent_name="agent",
    )
    call._turns.spoken(call._turns.begin("Hello"), 1.0, 2.0)
    return call


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoReplyError("reply_heard", 1, "silence"), "no_reply"),
        (AgentLostError("the agent left the room"), "agent_lost"),
        (StageTimeoutError("the end of the agent's speech", 60, "it still speaks"), "error"),
    ],
)
async def test_a_turn_that_was_not_heard_to_its_end_is_not_ok(
    monkeypatch: pytest.MonkeyPatch, error: LabvoiceError, outcome: str
) -> None:
    """Whatever ends the hearing early, the turn does not count as answered."""
    call = _call()

    async def fail(*_: object, **__: object) -> float:
        raise error

    if outcome == "error":
        call._turns.agent_starts(2.5)
        monkeypatch.setattr(call, "hear_end", fail)
    else:
        monkeypatch.setattr(call, "_until", fail)
    with pytest.raises(type(error)):
        await call.hear()
    assert call.turns[0].outcome == outcome


async def test_marks_of_a_turn_are_told_as_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply's onset is told before anybody waits for the reply's end."""
    call = _call()
    told: list[str] = []
    call.on_turn_mark = lambda turn, mark: told.append(f"{turn.number} {mark.name} {mark.at_s}")

    async def never_ends() -> None:
        raise StageTimeoutError("the end of the agent's speech", 60, "it still speaks")

    call._turns.agent_starts(2.5)
    monkeypatch.setattr(call, "hear_end", never_ends)
    with pytest.raises(StageTimeoutError):
        await call.hear()
    assert told == ["0 reply_heard 2.5"]


async def test_a_doubtful_end_of_speech_is_told_on_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was done to a recording, and that its end is uncertain, stand on the turn and call."""
    call = _call()
    call.turns.clear()

    async def play(_: object, first: int, last: int) -> tuple[float, float]:
        return first / 48000, last / 48000

    monkeypatch.setattr(call._microphone, "play", play)
    tone = 0.5 * np.sin(np.arange(4800) / 20)
    turn = await call.say(Utterance("", np.column_stack([tone, tone]), 48000, "mine"))
    assert turn.notice.startswith("its two channels hold the same audio")
    assert "the end of speech is uncertain: no speech is detected" in turn.notice
    assert f"turn 1: {turn.notice}" in repr(call)
    assert turn.marks["user_speech_end"] == pytest.approx(0.1, abs=0.001)


def test_a_reply_into_the_callers_turn_has_no_latency() -> None:
    """A latency is never negative: it is measured, or there is none."""
    turn = Turn(0, "Hello", {"user_speech_end": 2.0, "reply_heard": 2.5})
    assert turn.voice_to_voice_s == 0.5
    turn.marks["reply_heard"] = 1.5
    assert turn.voice_to_voice_s is None
    assert Turn(0, "Hello").voice_to_voice_s is None


async def test_a_reply_that_begins_too_early_makes_its_turn_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reply to the rest of a split utterance belongs to the same turn, and dates it."""
    call = _call()
    turn = call.turns[0]
    told: list[float] = []
    call.on_turn_mark = lambda _, mark: told.append(mark.at_s)
    call._turns.item(Item("u", "user", "Oh"))
    call._turns.agent_starts(1.5)
    call._turns.item(Item("a", "assistant", "Well", interrupted=True))
    call._turns.item(Item("b", "user", "Hello"))

    async def until(condition: Callable[[], bool], *_: object) -> None:
        if not condition():  # what happens while one waits
            call._turns.agent_starts(2.8)
            call._turns.item(Item("c", "assistant", "Sure."))
        assert condition()

    async def nothing() -> None:
        return None

    monkeypatch.setattr(call, "_until", until)
    monkeypatch.setattr(call, "hear_end", nothing)
    monkeypatch.setattr(call, "_fetch_worker", nothing)
    assert await call.hear() is turn
    assert turn.outcome == "interrupted"
    assert turn.voice_to_voice_s == pytest.approx(0.8)
    assert told == [2.8]
    assert turn.reply == "Well Sure."


@pytest.mark.parametrize(("gone", "error"), [("it left", AgentLostError), ("", LabvoiceError)])
async def test_an_agent_that_does_not_answer_is_lost_if_it_left(
    monkeypatch: pytest.MonkeyPatch, gone: str, error: type[LabvoiceError]
) -> None:
    """An RPC that fails is an outcome of the call, not a stranger's exception."""
    call = _call()
    agent = SimpleNamespace(attributes={"labvoice.dispatch_id": "AD_1"})

    class Refusing:
        async def perform_rpc(self, **_: Any) -> str:
            raise rtc.RpcError(1503, "Recipient disconnected")

    room = SimpleNamespace(remote_participants={"": agent}, local_participant=Refusing())
    monkeypatch.setattr(call, "_room", room)
    monkeypatch.setattr(call, "_agent_gone", gone)
    with pytest.raises(LabvoiceError, match="Recipient disconnected") as caught:
        await call._fetch_worker()
    assert type(caught.value) is error
