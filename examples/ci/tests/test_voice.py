"""Tests that call the agent: its language model is a script, the rest is real."""

import pytest

from labvoice.scenarios.model import ModelCall, Rule
from labvoice.scenarios.sync import SyncCaller

SCRIPT = [
    Rule(
        user="hours|open|saturday",
        call=[ModelCall("opening_hours", {"day": "Saturday"})],
        say="We are open from {result}.",
    )
]


@pytest.mark.scenario
def test_the_agent_tells_the_opening_hours(labvoice_call: SyncCaller) -> None:
    """It looks them up, and says what it has found."""
    call = labvoice_call("agent.py", model=SCRIPT)
    assert "clinic" in call.greeting.lower()

    turn = call.ask("When are you open on Saturday?")

    assert [tool.name for tool in call.tools] == ["opening_hours"]
    assert "noon" in turn.reply.lower()
    assert turn.voice_to_voice_s is not None
