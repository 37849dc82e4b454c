"""Turns on a machine that may be busy with other tests."""

from __future__ import annotations

import pytest

from labvoice.caller.call import Call
from labvoice.caller.turns import Turn
from labvoice.errors import NoReplyError
from labvoice.speech.utterances import Utterance

PATIENCE_S = 90.0
"""How long a reply may take where its time is not what is tested: four stacks on two cores."""

LISTENS = pytest.mark.flaky(
    reruns=1,
    reason="Somebody speaks in real time: where this machine stalls meanwhile, samples arrive late "
    "at the agent, which splits the turn or mishears a word of it.",
)
"""A test of a command, a bench or a page that makes calls, in which nothing can be said again."""
_SAYINGS = 3


def was_broken(turn: Turn) -> bool:
    """Whether this machine was too busy to send the caller's speech as it is."""
    return "too busy to send it in time" in turn.notice


async def answered_turn(call: Call, utterance: Utterance) -> Turn:
    """Says it and hears the answer; says it again where this machine broke the caller's speech.

    On a busy machine samples arrive late at the agent too, which takes the gap for the end of the
    turn and answers its parts; only such a turn may be `interrupted`. An agent that cuts off its
    reply to one undivided message fails the test.
    """
    for number in range(_SAYINGS):
        last = number == _SAYINGS - 1
        await call.say(utterance)
        turn = call.turns[-1]
        try:
            await call.hear(PATIENCE_S)
        except NoReplyError:
            if last or not was_broken(turn):
                raise
            continue
        understood = turn.outcome == "ok" and turn.word_error_rate == 0
        if last or understood or not was_broken(turn):
            break
    assert turn.outcome == "ok" or (turn.outcome == "interrupted" and turn.user_messages > 1), turn
    return turn


def answers_nothing_twice(call: Call) -> bool:
    """Whether the agent has never said more than its greeting and an answer to each message."""
    roles = [
        event["item"]["message"].get("role")
        for event in call.session_events
        if event["event"] == "conversation_item_added" and "message" in event["item"]
    ]
    return bool(roles) and all(
        roles[:end].count("ASSISTANT") <= roles[:end].count("USER") + 1
        for end in range(1, len(roles) + 1)
    )


def was_said(turn: Turn, messages: list[str]) -> bool:
    """Whether a history holds the words of a turn, in one message or several."""
    return (turn.transcript or "-").split() == [
        word
        for message in messages
        if message in (turn.transcript or "-")
        for word in message.split()
    ]
