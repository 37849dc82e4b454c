"""A call over a bad network: one lab that dates packets, one call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labvoice.caller.call import Call
from labvoice.caller.media import media_stats
from labvoice.caller.turns import Turn
from labvoice.errors import LabvoiceError, MediaPathError, NoReplyError, UsageError
from labvoice.lab import Lab
from labvoice.protocol.vocabulary import TRANSPORT, TRANSPORT_PARTS, WIRE_MARKS
from labvoice.speech.utterances import Utterance
from tests.stack.talking import PATIENCE_S, answered_turn

_DELAY_S = 0.1


@pytest.fixture(scope="module")
async def wired() -> AsyncIterator[Lab]:
    """A lab whose relays date packets."""
    async with Lab(llm="paced", letta=False, supervise=False, wire=True) as running:
        yield running


@pytest.fixture(scope="module")
async def call(wired: Lab) -> AsyncIterator[Call]:
    """A call whose link lets everything pass at first."""
    call = await wired.call(link="none")
    await call.hear_greeting(PATIENCE_S)
    yield call
    await call.end()


async def test_media_goes_by_the_link_alone(call: Call) -> None:
    """The only path in use ends at the relay, which has seen what the caller sent and received."""
    first = await call.link.counts()
    stats = await media_stats(call.media.room)
    counts = await call.link.counts()
    assert stats is not None
    assert stats.ports == {call.link.udp_port}
    assert counts["up in"] >= 0.9 * stats.sent > 0
    assert counts["down out"] >= 0.9 * stats.received > 0
    assert [counts[name] - first[name] for name in ("up lost", "down lost")] == [0, 0]


async def _dated_turn(call: Call, utterance: Utterance) -> Turn:
    """An answered turn; another where a stall parts the reply's packet from its sound by 0.3 s."""
    for _ in range(3):
        turn = await answered_turn(call, utterance)
        if turn.marks.keys() >= set(WIRE_MARKS):
            break
    return turn


async def test_packets_are_dated_and_a_delay_of_the_link_is_seen(
    wired: Lab, call: Call, recorded: list[Utterance], tmp_path: Path
) -> None:
    """The parts of transport add up to it, and a delay both ways is in its wire part."""
    before = await _dated_turn(call, recorded[0])
    await call.link.set(f"delay={_DELAY_S * 1000:g}ms")
    after = await _dated_turn(call, recorded[1])
    await call.link.clear()
    for turn in (before, after):
        marks = [turn.marks[name] for name in WIRE_MARKS]
        assert marks == sorted(marks)
        assert turn.jitter_buffer_s is not None
        assert turn.marks["user_speech_end"] - 0.02 <= marks[0]
        assert marks[-1] <= turn.marks["reply_heard"]
    run = wired.bench.record(call, tmp_path / "call.jsonl")
    turns = run.frame[run.frame["turn"].notna()].pivot(
        index="turn", columns="stage", values="duration_s"
    )
    voice = turns[["voice_to_voice_wire", "voice_to_voice"]].dropna()
    assert (voice["voice_to_voice_wire"] < voice["voice_to_voice"]).all()
    turns = turns.loc[[before.number, after.number]]
    parts = turns[list(TRANSPORT_PARTS)]
    assert parts.sum(axis=1).to_numpy() == pytest.approx(turns[TRANSPORT].to_numpy(), abs=1e-6)
    assert parts["transport_wire"][after.number] >= 2 * _DELAY_S
    assert turns["voice_to_voice_wire"].notna().all()


async def test_a_cut_link_is_told_as_such(call: Call, recorded: list[Utterance]) -> None:
    """Where the link lets nothing pass, the error of the missing reply says so."""
    await call.link.set("loss=100%")
    await call.say(recorded[0])
    with pytest.raises(NoReplyError, match=r"the link \(loss=100%\) loses every packet"):
        await call.hear(1.0)
    await call.link.clear()


async def test_media_that_goes_round_the_link_is_an_error(
    call: Call, recorded: list[Utterance]
) -> None:
    """A turn whose media takes another port than the relay's has the outcome `error`."""
    link = call.link
    port, link.udp_port = link.udp_port, link.udp_port + 1
    try:
        await call.say(recorded[0])
        with pytest.raises(MediaPathError, match=f"goes to port {port}"):
            await call.hear(PATIENCE_S)
    finally:
        link.udp_port = port
    assert call.turns[-1].outcome == "error"


async def test_a_call_without_a_link_has_none_to_change(lab: Lab) -> None:
    """The error says how to connect one that can be changed."""
    call = lab.new_call()
    with pytest.raises(UsageError, match="no link"):
        await call.link.clear()
    await call.end()
    with pytest.raises(LabvoiceError, match="no link '5g'"):
        lab.new_call(link="5g")
