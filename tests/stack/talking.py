"""Turns on a machine that may be busy with other tests."""

from __future__ import annotations

from labvoice.caller.call import Call
from labvoice.caller.turns import Turn
from labvoice.speech.utterances import Utterance

PATIENCE_S = 90.0
"""How long a reply may take where its time is not what is tested: four stacks on two cores."""


async def answered_turn(call: Call, utterance: Utterance) -> Turn:
    """Says it and hears the answer.

    On a busy machine samples arrive late, the agent takes the gap for the end of the turn and
    answers its parts; only such a turn may be `interrupted`. An agent that cuts off its reply to
    one undivided message fails the test.
    """
    await call.say(utterance)
    turn = await call.hear(PATIENCE_S)
    assert turn.outcome == "ok" or (turn.outcome == "interrupted" and turn.user_messages > 1), turn
    return turn


def was_said(turn: Turn, messages: list[str]) -> bool:
    """Whether a history holds the words of a turn, in one message or several."""
    return (turn.transcript or "-").split() == [
        word
        for message in messages
        if message in (turn.transcript or "-")
        for word in message.split()
    ]
