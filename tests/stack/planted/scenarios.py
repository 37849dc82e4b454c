"""Eight scenarios for the agent beside this file, and which of them finds which of its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from labvoice.scenarios.model import (
    HANG_UP,
    Expect,
    Interrupt,
    ModelCall,
    Play,
    Rule,
    Say,
    Scenario,
    Tool,
)
from labvoice.targets.target import Target

PLANTED: Final = Target.program(Path(__file__).with_name("agent.py"))
LONG_S: Final = 15.0
"""Bound of what must happen and may take long on a busy machine."""
MODEL: Final = [
    Rule(user="hours|open", say="We are open from eight until six."),
    Rule(
        user="find|appointment",
        call=[ModelCall("find_appointment", {"user": "Ann"})],
        say="It is on {result}.",
    ),
    Rule(user="stop|other", say="Of course, what else?"),
    Rule(
        user="tell|surgery",
        say="The surgery opens at eight in the morning and it closes at six in the evening, and "
        "on Saturdays it is open only from nine until noon.",
    ),
]
HOURS: Final = Say("What are your opening hours?")
FIND: Final = Say("Please find my appointment.")
STORY: Final = Say("Please tell me about the surgery.")
STOP: Final = Say("Stop, I mean the other day.", Interrupt(after=1.2))

GREETS: Final = Scenario(
    name="greets",
    steps=[Expect(greeting=LONG_S, heard="surgery"), HANG_UP],
    model=MODEL,
)
IN_TIME: Final = Scenario(name="is in time", steps=[HOURS], model=MODEL)
"""The bound is measured: what the agent takes without a fault, and 0.6 s."""
ANSWERS: Final = Scenario(
    name="answers",
    steps=[HOURS, Expect(reply=LONG_S, heard="eight until six")],
    model=MODEL,
)
TOOL: Final = Scenario(
    name="calls the tool",
    steps=[
        FIND,
        Expect(reply=LONG_S, heard="Monday", tool=[Tool("find_appointment", {"user": "*"})]),
    ],
    model=MODEL,
)
YIELDS: Final = Scenario(
    name="yields", steps=[STORY, STOP, Expect(yields=2.5), HANG_UP], model=MODEL
)
RECOVERS: Final = Scenario(
    name="recovers", steps=[STORY, STOP, Expect(heard="of course")], model=MODEL
)
STANDS: Final = Scenario(
    name="stands a cough",
    steps=[
        STORY,
        Play("cough", interrupt=Interrupt(after=1.2)),
        Expect(yields="never", heard="until noon"),
    ],
    model=MODEL,
)
STAYS: Final = Scenario(name="stays", steps=[FIND, Say("And on the other day?")], model=MODEL)

FOUND_BY: Final = {
    "forgets to greet": GREETS,
    "late": IN_TIME,
    "says the wrong thing": ANSWERS,
    "calls the wrong tool": TOOL,
    "never yields": YIELDS,
    "hangs after an interruption": RECOVERS,
    "yields to a cough": STANDS,
    "leaves early": STAYS,
}
"""The scenario that finds a fault; no other does."""
