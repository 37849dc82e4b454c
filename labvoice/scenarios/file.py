"""Reads scenario files; what is wrong in one is told with its line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from labvoice.scenarios.lines import Document, ScenarioError
from labvoice.scenarios.model import ACTIONS, SCENARIO, Scenario, StepError
from labvoice.scenarios.quantities import FROM_FILE


@dataclass(frozen=True)
class ScenarioFile:
    """A scenario and where it was read.

    Attributes:
        scenario: The scenario.
        path: The file; None of a scenario that was made in Python.
        lines: The line of each step, from 1.
        notices: What of the file is not used, a sentence each.
        document: The file's own text, for the lines of its values.
    """

    scenario: Scenario
    path: Path | None = None
    lines: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    document: Document | None = field(default=None, repr=False, compare=False)

    def where(self, step: int | None) -> str:
        """Returns a step's place: `file:line`, or its number; `the call` of None."""
        if step is None:
            return "the whole call" if self.path is None else f"{self.path}, the whole call"
        if self.path is None or step >= len(self.lines):
            return f"step {step + 1}"
        return f"{self.path}:{self.lines[step]}"

    def refusal(self, observed: str, hint: str, *place: str | int) -> ScenarioError:
        """Returns the error of a value, with the file and the line of the value.

        Args:
            observed: What is wrong.
            hint: What to do.
            place: Keys and indices of the value, from the root.
        """
        line = None if self.document is None else self.document.line_of(place)
        return ScenarioError(observed, hint, path=self.path, line=line)

    def find(self, name: str, *place: str | int) -> Path:
        """Returns the path of a file that the scenario names at a place.

        It is looked for from the scenario's folder, then from the working directory.

        Raises:
            ScenarioError: It is in neither; with file and line.
        """
        folders = [Path() if self.path is None else self.path.parent, Path()]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        places = " and ".join(str(each.absolute()) for each in dict.fromkeys(folders))
        raise self.refusal(f"there is no file {name!r}", f"looked for in {places}", *place)


def load(path: Path | str) -> ScenarioFile:
    """Reads a scenario file.

    Raises:
        ScenarioError: It cannot be read or is invalid; with file and line.
    """
    path = Path(path)
    return scenario_of(Document.read(path))


def scenario_of(document: Document) -> ScenarioFile:
    """Reads a scenario from a YAML document.

    Raises:
        ScenarioError: It is invalid; with file and line.
    """
    path = document.path
    if not isinstance(document.data, dict):
        raise ScenarioError("it is no scenario: a mapping with `name` and `steps`", path=path)
    try:
        scenario = SCENARIO.validate_python(document.data, context=FROM_FILE)
    except ValidationError as error:
        raise _refusal(document, error) from None
    except StepError as error:
        line = document.line_of(["steps", error.step])
        raise ScenarioError(error.observed, path=path, line=line) from None
    lines = tuple(document.line_of(["steps", number]) for number in range(len(scenario.steps)))
    return ScenarioFile(scenario, path, lines, document=document)


def _refusal(document: Document, error: ValidationError) -> ScenarioError:
    """Returns the first error, with its line."""
    first = error.errors(include_url=False)[0]
    place = tuple("expect" if part == "expect step" else part for part in first["loc"])
    line = document.line_of(place)
    shown = ".".join(str(p) for p in place if isinstance(p, str) and not p.endswith(" step"))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        key = first.get("ctx", {}).get("key", place[-1])
        if key in ACTIONS:
            words = f"a step does one thing: begin `{key}` with a dash of its own"
            return ScenarioError(words, path=document.path, line=line)
        return ScenarioError(f"there is no key {key!r}", path=document.path, line=line)
    if first["type"] in ("missing", "missing_argument"):
        return ScenarioError(f"the key {place[-1]!r} is missing", path=document.path, line=line)
    words = first["msg"].removeprefix("Value error, ")
    return ScenarioError(f"{shown}: {words}", path=document.path, line=line)
