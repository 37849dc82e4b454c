"""Rounds: arms say the same in a round whatever failed before, and ratios pair only that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import ListParticipantsResponse

from labvoice.bench.burst import BURST_ARMS, BurstEvent
from labvoice.bench.turns import said_in
from labvoice.caller.turns import Turn
from labvoice.protocol.vocabulary import Mark
from labvoice.runs import host
from labvoice.runs.run import Run, RunWriter
from labvoice.speech.utterances import Utterance

_LONG, _SHORT = "a long question", "a short one"


def utterance(text: str) -> Utterance:
    """Something that can be said."""
    return Utterance(text, np.zeros(10, np.int16), 48000, "test")


def test_words_follow_from_round_and_turn() -> None:
    """Every arm asks the same in a round, and the rotation goes on over turns and rounds."""
    words = [utterance(text) for text in "abc"]
    assert ["".join(each.text for each in said_in(words, n, 2)) for n in range(4)] == [
        "ab",
        "ca",
        "bc",
        "ab",
    ]


def turns_run(
    path: Path,
    rows: list[tuple[str, int, str, float | None]],
    arms: Mapping[str, Mapping[str, Any]],
) -> Run:
    """Records calls of one turn: arm, round, words, and voice to voice or None for a failure."""
    with RunWriter(path, kind="turns", arms=arms) as run:
        for trial, (arm, number, said, took_s) in enumerate(rows):
            run.trial(trial, f"room-{trial}", arm, round_number=number)
            run.outcome(trial, "ok" if took_s else "no_worker")
            run.note(trial, 0, said=said)
            if took_s:
                run.mark(trial, Mark("user_speech_end", 1.0), turn=0)
                run.mark(trial, Mark("reply_heard", 1.0 + took_s), turn=0)
            run.outcome(trial, "ok" if took_s else "no_worker", turn=0)
    return Run.load(path)


def test_ratios_pair_what_said_the_same_in_the_same_round(tmp_path: Path) -> None:
    """A trial that failed does not pair the others' words with different ones."""
    words = [_LONG, _SHORT] * 3
    rows: list[tuple[str, int, str, float | None]] = []
    for number, text in enumerate(words):
        took_s = 2.0 if text == _LONG else 1.0
        rows.append(("a", number, text, None if number == 0 else took_s))
        rows.append(("b", number, text, took_s))
    run = turns_run(tmp_path / "run.jsonl", rows, {"a": {}, "b": {}})
    assert run.ratios()["b/a"]["voice_to_voice"].ratio == pytest.approx(1.0)
    assert run.ratios()["b/a"]["voice_to_voice"].ci95 == pytest.approx((1.0, 1.0))
    assert set(run.frame.loc[run.frame["turn"].notna(), "said"]) == {_LONG, _SHORT}


def test_what_said_something_else_is_not_paired(tmp_path: Path) -> None:
    """One round whose words differ is left out of the ratio."""
    rows: list[tuple[str, int, str, float | None]] = [
        ("a", 0, _LONG, 2.0),
        ("b", 0, _SHORT, 1.0),
        ("a", 1, _LONG, 2.0),
        ("b", 1, _LONG, 4.0),
    ]
    run = turns_run(tmp_path / "run.jsonl", rows, {"a": {}, "b": {}})
    assert run.ratios()["b/a"]["voice_to_voice"].ratio == pytest.approx(2.0)


def test_ratios_are_stated_against_the_better_baseline(tmp_path: Path) -> None:
    """Of several arms that are baselines, the faster is the base, wherever it was named."""
    rows: list[tuple[str, int, str, float | None]] = [
        (arm, number, _LONG, took_s)
        for number in range(3)
        for arm, took_s in (("mine", 1.0), ("stock-naive", 4.0), ("stock", 2.0))
    ]
    arms = {"mine": {}, "stock-naive": {"baseline": True}, "stock": {"baseline": True}}
    run = turns_run(tmp_path / "run.jsonl", rows, arms)
    assert run.base == "stock"
    assert set(run.ratios()) == {"mine/stock", "stock-naive/stock"}
    assert run.ratios()["mine/stock"]["voice_to_voice"].ratio == pytest.approx(0.5)


def test_the_word_error_rate_leaves_out_what_was_never_answered(tmp_path: Path) -> None:
    """A turn without an answer says nothing of the recogniser; its split is still counted."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="turns") as run:
        run.trial(0, "room", "default")
        for turn, (outcome, wer) in enumerate((("ok", 0.0), ("no_reply", 1.0))):
            run.note(0, turn, said="three little words", wer=wer, user_messages=1 + turn)
            run.outcome(0, outcome, turn=turn)
    assert Run.load(path).word_error_rate() == 0.0
    assert Run.load(path).split_turns() == 1


def test_a_turn_that_nobody_answered_has_no_word_error_rate() -> None:
    """None, as where nobody knows what was said."""
    assert Turn(0, "three little words").word_error_rate is None
    answered = Turn(0, "three little words", {"user_speech_end": 1.0, "reply_heard": 2.0})
    assert answered.word_error_rate is None  # no message says what was understood
    answered.user_messages = 1
    assert answered.word_error_rate == 1.0


def test_the_load_is_that_before_the_lab_started() -> None:
    """The host's facts have the load that is given, not what the stack's start has made."""
    assert host.facts(load_1m=0.25)["load_1m"] == 0.25


class _Server:
    """Answers as a server under load does: some rooms' requests fail, all but one get an agent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.api = self
        self.agent_dispatch = self
        self.room = self

    async def create_dispatch(self, request: Any) -> None:
        self.asked.append(request.room)
        if len(self.asked) == 2:
            raise TimeoutError("the server is busy")

    async def list_participants(self, request: Any) -> Any:
        place = self.asked.index(request.room) if request.room in self.asked else 0
        agent = ParticipantInfo(
            identity="agent", kind=ParticipantInfo.Kind.AGENT, state=ParticipantInfo.State.ACTIVE
        )
        return ListParticipantsResponse(participants=[agent] * (0 if place == 2 else 1))

    async def delete_room(self, _: Any) -> None:
        raise TimeoutError("the server is busy")


async def test_a_burst_keeps_every_rooms_outcome(tmp_path: Path) -> None:
    """An API error is one room's outcome, not the run's end, and the burst is one session."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="burst", loop="open", arms={"plain": {}}) as run:
        server: Any = _Server()
        event = BurstEvent(run, server, BURST_ARMS[0], 0, False, wait_s=0.3, late_s=0.0)
        words = await event.happen(0, 4)
    assert words == "3 of 4 rooms have one agent, 1 none, 0 more than one"
    loaded = Run.load(path)
    assert list(loaded.outcomes["outcome"]) == ["ok", "error", "no_worker", "ok"]
    assert loaded.complete
    assert loaded.frame["unit"].nunique() == 1


class _Leaving(_Server):
    """Every room gets an agent; of the first one it is not listed for a moment, the second left."""

    def __init__(self) -> None:
        super().__init__()
        self.looked: dict[str, int] = {}

    async def create_dispatch(self, request: Any) -> None:
        self.asked.append(request.room)

    async def list_participants(self, request: Any) -> Any:
        room = request.room
        looks = self.looked[room] = self.looked.get(room, 0) + 1
        away = looks in (2, 3) if room == self.asked[0] else looks > 1 and room == self.asked[1]
        agent = ParticipantInfo(
            identity=f"agent-of-{room}",
            kind=ParticipantInfo.Kind.AGENT,
            state=ParticipantInfo.State.JOINED if away else ParticipantInfo.State.ACTIVE,
        )
        return ListParticipantsResponse(participants=[agent])

    async def why_ended(self, _: str, identity: str) -> str:
        return f"the log says that {identity} crashed"


async def test_an_agent_that_connects_anew_has_not_left(tmp_path: Path) -> None:
    """One look that finds no agent is no loss; of one that left the server's reason is told."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="burst", loop="open", arms={"plain": {}}) as run:
        server: Any = _Leaving()
        times = {"wait_s": 0.5, "late_s": 0.0, "resumes_s": 0.5}
        event = BurstEvent(run, server, BURST_ARMS[0], 0, False, **times)
        await event.happen(0, 3)
    loaded = Run.load(path)
    outcomes = loaded.outcomes.set_index("room")
    resumed, left, stayed = server.asked
    assert outcomes["outcome"].to_dict() == {resumed: "ok", left: "agent_lost", stayed: "ok"}
    said = f"agent-of-{left} left again: the log says that agent-of-{left} crashed"
    assert outcomes.loc[left, "detail"] == said
    assert list(loaded.notes.dropna(subset="resumed")["room"]) == [resumed]
