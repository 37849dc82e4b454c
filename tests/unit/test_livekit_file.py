"""LiveKit's scenarios.yaml is read as far as it can be played over a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.livekit_file import load_all
from labvoice.scenarios.model import Persona

FILE = """\
name: surgery
scenarios:
  - label: impatient
    instructions: |
      You are Ann. You want to move your appointment to Tuesday.
    agent_expectations: The appointment is moved to Tuesday.
    tags: {area: booking}
    userdata: {book: {Ann: Monday}}
  - instructions: You ask for the opening hours.
"""


def test_instructions_are_a_persona_and_expectations_a_judge(tmp_path: Path) -> None:
    """What cannot be played is said."""
    path = tmp_path / "scenarios.yaml"
    path.write_text(FILE, encoding="utf-8")
    one, two = load_all(path)
    assert one.scenario.name == "surgery: impatient"
    assert isinstance(one.scenario.steps[0], Persona)
    assert one.scenario.steps[0].persona.startswith("You are Ann.")
    assert one.scenario.expect.judge == "The appointment is moved to Tuesday."
    assert one.scenario.tags == {"area": "booking"}
    assert one.where(0) == f"{path}:3"
    assert "`userdata` is not given to the agent" in one.notices[0]
    assert two.scenario.name == "surgery: 2"
    assert two.scenario.expect.judge is None
    assert "nothing is judged" in two.notices[0]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("scenarios: []\n", 1, "no list of scenarios"),
        ("scenarios:\n  - label: x\n", 2, "`instructions` are missing"),
        ("scenarios:\n  - label: x\n    persona: y\n", 3, "no key 'persona'"),
        ("scenarios:\n  - x\n", 2, "it is no scenario"),
        ("scenarios:\n  - instructions: x\n    tags: y\n", 3, "`tags` is no mapping"),
        ("scenarios:\n  - instructions: [x]\n", 2, "`instructions` is no text"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    """As of a scenario of ours."""
    path = tmp_path / "scenarios.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=rf"scenarios\.yaml:{line}: .*{words}"):
        load_all(path)
