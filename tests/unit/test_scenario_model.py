"""Scenarios are read from YAML and made in Python; what cannot be meant is named with its line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from labvoice.scenarios.file import load
from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.model import (
    HANG_UP,
    SCHEMA_PATH,
    Expect,
    ExpectCall,
    Interrupt,
    Latency,
    Like,
    ModelCall,
    Noise,
    Rule,
    Say,
    Scenario,
    Silence,
    Tool,
    Voice,
    schema,
    schema_text,
)

EXAMPLE = """\
name: change an appointment
agent: examples/appointments/agent.py        # any AGENT; or left to the command line
voice: {speaker: kokoro/jf_alpha, noise: {kind: street, snr_db: 15}, line: telephone, speed: 1.1}
steps:
  - expect: {greeting: within 2 s}
  - say: I would like to change my appointment.
  - expect: {reply: within 1.5 s, heard: "which day|when", tool: {name: find_appointment, arguments: {user: "*"}}}
  - say: On … Tuesday, the third.              # "…" is a pause of 0.8 s
    interrupt: {after: 0.9 s of the reply}
  - expect: {yields: within 1 s, word_error_rate: below 0.1}
  - silence: 4 s
  - hang up
expect: {turns split: none, voice_to_voice: {p95: below 1.5 s}, final: "tests/hooks.py::appointment_is_moved"}
model:
  - user: change
    call: {name: find_appointment, arguments: {user: Ann}}
    say: Which day would suit you?
"""  # noqa: E501

IN_PYTHON = Scenario(
    name="change an appointment",
    agent="examples/appointments/agent.py",
    voice=Voice(
        speaker="kokoro/jf_alpha",
        noise=Noise(kind="street", snr_db=15),
        line="telephone",
        speed=1.1,
    ),
    steps=[
        Expect(greeting=2),
        Say("I would like to change my appointment."),
        Expect(
            reply=1.5,
            heard="which day|when",
            tool=[Tool(name="find_appointment", arguments={"user": "*"})],
        ),
        Say("On … Tuesday, the third.", interrupt=Interrupt(after=0.9)),
        Expect(yields=1, word_error_rate=0.1),
        Silence(4),
        HANG_UP,
    ],
    expect=ExpectCall(
        turns_split=0,
        voice_to_voice=Latency(p95=1.5),
        final="tests/hooks.py::appointment_is_moved",
    ),
    model=[
        Rule(
            user="change",
            call=[ModelCall("find_appointment", {"user": "Ann"})],
            say="Which day would suit you?",
        )
    ],
)


def write(folder: Path, text: str) -> Path:
    """Writes a scenario file."""
    path = folder / "a.scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_python_say_the_same(tmp_path: Path) -> None:
    """The example of the documentation is the same scenario in both."""
    assert load(write(tmp_path, EXAMPLE)).scenario == IN_PYTHON


def test_every_step_knows_its_line(tmp_path: Path) -> None:
    """A failure names the line of its step."""
    file = load(write(tmp_path, EXAMPLE))
    assert file.lines == (5, 6, 7, 8, 10, 11, 12)
    assert file.where(3) == f"{file.path}:8"


STEPS = "name: x\nsteps:\n  - say: Hello.\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (STEPS + "colour: red\n", 4, "there is no key 'colour'"),
        (STEPS + "  - expect: {herd: x}\n", 4, "there is no key 'herd'"),
        (STEPS + "    interupt: {after: 1 s}\n", 4, "there is no key 'interupt'"),
        (STEPS + "  - expect:\n      reply: within 1 s\n      herd: x\n", 6, "no key 'herd'"),
        (STEPS + "  - expect: {reply: within 1.5}\n", 4, "'1.5' is no duration"),
        (STEPS + "  - expect: {reply: 1.5 s}\n", 4, "does not begin with `within`"),
        (STEPS + "  - silence: 4\n", 4, "4 has no unit"),
        (STEPS + "  - silence: -4 s\n", 4, "is no duration"),
        (STEPS + "  - silence: 4 hours\n", 4, "is no duration"),
        (STEPS + "  - expect: {heard: '(which'}\n", 4, "the pattern '(which' does not compile"),
        (STEPS + "  - expect: {tool: {name: x, arguments: {y: '['}}}\n", 4, "does not compile"),
        (STEPS + "  - expect: {heard: {like: hello, at_least: 2}}\n", 4, "less than or equal to 1"),
        (STEPS + "  - expect: {word_error_rate: below much}\n", 4, "is no bound"),
        (STEPS + "  - hang up\n  - silence: 1 s\n", 5, "cannot be reached"),
        (STEPS + "  - expect: {yields: within 1 s}\n", 4, "`yields` needs an interruption"),
        (STEPS + "  - expect: {greeting: within 1 s}\n", 4, "before the caller speaks"),
        ("name: x\nsteps:\n  - expect: {reply: within 1 s}\n", 3, "has said nothing yet"),
        (STEPS + "  - wave: hand\n", 4, "it is no step"),
        (STEPS + "  - hangup\n", 4, "it is no step"),
        (STEPS + "    expect: {reply: within 1 s}\n", 4, "a step does one thing"),
        (STEPS + "voice: {line: radio}\n", 4, "'telephone'"),
        (STEPS + "voice:\n  speed: fast\n", 5, "voice.speed"),
        (STEPS + "expect: {final: hooks}\n", 4, "expect.final"),
        ("steps:\n  - say: Hello.\n", 1, "the key 'name' is missing"),
        ("name: x\nname: y\nsteps: []\n", 2, "stands there twice"),
        ("name: x\nsteps:\n  - say: a: b\n", 3, "it is no YAML"),
        ("- say: x\n", None, "it is no scenario"),
        ("", None, "it is empty"),
        (STEPS + "model:\n  - {user: '*', say: x}\n", 5, "does not compile"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_line(
    tmp_path: Path, text: str, line: int | None, words: str
) -> None:
    """An unknown key, a wrong duration, a step that is never reached: file, line and reason."""
    path = write(tmp_path, text)
    with pytest.raises(ScenarioError) as caught:
        load(path)
    place = f"{path}:{line}: " if line else f"{path}: "
    assert caught.value.observed.startswith(place)
    assert words in caught.value.observed
    assert caught.value.line == line
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path without a file is the user's error."""
    with pytest.raises(ScenarioError, match=r"none\.yaml: it cannot be read"):
        load(tmp_path / "none.yaml")


def test_one_tool_or_several_or_none_are_expected() -> None:
    """A copy of what expects no tool is the same; one tool stands for a list of one."""
    assert dataclasses.replace(Expect(yields="never"), yields=None) == Expect()
    assert Expect(tool=Tool("book")) == Expect(tool=[Tool("book")])  # type: ignore[arg-type]
    assert Rule(call=ModelCall("book")) == Rule(call=[ModelCall("book")])  # type: ignore[arg-type]


def test_python_refuses_a_step_that_is_never_reached() -> None:
    """A scenario made in Python is checked as one that was read."""
    with pytest.raises(ScenarioError, match=r"step 2: .* cannot be reached"):
        Scenario(name="x", steps=[HANG_UP, Say("Hello.")])


def test_the_schema_in_the_package_is_current() -> None:
    """`python -m labvoice.scenarios.model` writes it anew."""
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()


def valid(data: Any) -> bool:
    """Whether the schema takes it."""
    return bool(jsonschema.Draft202012Validator(schema()).is_valid(data))


def test_the_schema_takes_what_is_read_and_refuses_what_is_not() -> None:
    """An editor with the schema says the same as labvoice."""
    assert valid(yaml.safe_load(EXAMPLE))
    assert not valid(yaml.safe_load(STEPS + "colour: red\n"))
    assert not valid(yaml.safe_load(STEPS + "  - silence: 4\n"))
    assert not valid(yaml.safe_load(STEPS + "  - expect: {reply: 1.5 s}\n"))
    assert json.loads(schema_text())["required"] == ["name", "steps"]


def test_words_to_be_similar_to_stand_beside_a_pattern(tmp_path: Path) -> None:
    """`heard` is a pattern, or words with the least similarity."""
    file = load(write(tmp_path, STEPS + "  - expect: {heard: {like: good day, at_least: 0.5}}\n"))
    step = file.scenario.steps[1]
    assert isinstance(step, Expect)
    assert step.heard == Like(like="good day", at_least=0.5)
