"""Reads LiveKit's `scenarios.yaml` (`lk agent simulate`).

Its scenarios are for a language model that plays the user and another one that judges; they become
a step of :class:`labvoice.scenarios.model.Persona` and a `judge`. The format is that of livekit-cli
(cmd/lk/simulate.go, August 2026).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from labvoice.scenarios.file import ScenarioFile, scenario_of
from labvoice.scenarios.lines import Document, ScenarioError
from labvoice.scenarios.model import ExpectCall, Persona, Scenario

_KEYS: Final = ("name", "scenarios", "id")
_SCENARIO_KEYS: Final = ("label", "instructions", "agent_expectations", "tags", "userdata", "id")
_TURNS: Final = 20
_HINT: Final = "`docs/scenarios.md` says what of LiveKit's format is read"


def load_all(path: Path | str) -> list[ScenarioFile]:
    """Reads a file of one scenario, or LiveKit's of several.

    Raises:
        ScenarioError: It cannot be read or is invalid; with file and line.
    """
    document = Document.read(Path(path))
    if isinstance(document.data, dict) and "scenarios" in document.data:
        return _of_livekit(document)
    return [scenario_of(document)]


def _of_livekit(document: Document) -> list[ScenarioFile]:
    data = document.data
    _check_keys(document, [], data, _KEYS)
    scenarios = data["scenarios"]
    if not isinstance(scenarios, list) or not scenarios:
        raise _refused(document, ["scenarios"], "`scenarios` is no list of scenarios")
    group = data.get("name") or document.path.stem
    return [
        _scenario(document, f"{group}: ", number, each) for number, each in enumerate(scenarios)
    ]


def _scenario(document: Document, group: str, number: int, data: Any) -> ScenarioFile:
    place: list[str | int] = ["scenarios", number]
    if not isinstance(data, dict):
        raise _refused(document, place, "it is no scenario: a mapping with `instructions`")
    _check_keys(document, place, data, _SCENARIO_KEYS)
    for key in ("label", "instructions", "agent_expectations"):
        if not isinstance(data.get(key, ""), str):
            raise _refused(document, [*place, key], f"`{key}` is no text")
    if not data.get("instructions", "").strip():
        raise _refused(document, place, "`instructions` are missing: nobody knows what to say")
    tags = data.get("tags") or {}
    if not isinstance(tags, dict):
        raise _refused(document, [*place, "tags"], "`tags` is no mapping")
    notices = []
    if data.get("userdata"):
        notices.append("`userdata` is not given to the agent: it runs outside LiveKit's simulation")
    if not data.get("agent_expectations"):
        notices.append("there are no `agent_expectations`: nothing is judged")
    scenario = Scenario(
        name=group + (data.get("label") or str(number + 1)),
        steps=[Persona(data["instructions"], turns=_TURNS)],
        expect=ExpectCall(judge=data.get("agent_expectations") or None),
        tags={key: str(value) for key, value in tags.items()},
    )
    line = document.line_of(place)
    return ScenarioFile(scenario, document.path, (line,), tuple(notices))


def _check_keys(
    document: Document, place: list[str | int], data: dict[str, Any], known: tuple[str, ...]
) -> None:
    for key in data:
        if key not in known:
            raise _refused(document, [*place, key], f"LiveKit's format has no key {key!r}")


def _refused(document: Document, place: list[str | int], words: str) -> ScenarioError:
    return ScenarioError(words, _HINT, path=document.path, line=document.line_of(place))
