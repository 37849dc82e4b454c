"""JUnit XML of a suite, for CI systems."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # it writes, and reads nothing
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from labvoice.errors import writing
from labvoice.scenarios.suite import Attempt, ScenarioResult

_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 does not allow, even escaped (https://www.w3.org/TR/xml/#charsets)."""


def write_junit(path: Path, results: Sequence[ScenarioResult]) -> None:
    """Writes a file with a test case for each scenario and call.

    A failure of the agent's is a `failure`, one of the instrument's an `error`; a call that was
    not made any more is `skipped`.

    Raises:
        UsageError: The file cannot be written.
    """
    suites = ET.Element("testsuites", name="labvoice")
    for result in results:
        _suite(suites, result)
    for element in suites.iter():
        element.text = _FORBIDDEN.sub("?", element.text) if element.text else element.text
        for name, value in element.attrib.items():
            element.set(name, _FORBIDDEN.sub("?", value))
    ET.indent(suites)
    with writing(path, "choose another file for `--junit`"):
        ET.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def _suite(suites: ET.Element, result: ScenarioResult) -> None:
    attempts = result.attempts
    failed = [each for each in attempts if not each.passed]
    errors = sum(each.outcome == "error" for each in failed)
    name = result.file.scenario.name
    suite = ET.SubElement(
        suites,
        "testsuite",
        name=name,
        tests=str(result.repeat),
        failures=str(len(failed) - errors),
        errors=str(errors),
        skipped=str(result.repeat - len(attempts)),
        time=f"{sum(each.took_s for each in attempts):.3f}",
    )
    for number in range(result.repeat):
        case = ET.SubElement(
            suite,
            "testcase",
            classname=str(result.file.path or "labvoice"),
            name=f"{name} [{number + 1}]" if result.repeat > 1 else name,
        )
        if number < len(attempts):
            _case(case, attempts[number])
        else:
            ET.SubElement(case, "skipped", message="a call before it failed")


def _case(case: ET.Element, attempt: Attempt) -> None:
    case.set("time", f"{attempt.took_s:.3f}")
    if not attempt.passed:
        tag = "error" if attempt.outcome == "error" else "failure"
        words = attempt.words()
        failure = ET.SubElement(case, tag, type=attempt.outcome, message=(words or [""])[0])
        failure.text = "\n".join(words)
    if attempt.recording is not None or attempt.notices:
        lines = [f"recording: {attempt.recording}"] if attempt.recording is not None else []
        ET.SubElement(case, "system-out").text = "\n".join(
            [*lines, *(f"notice: {each}" for each in attempt.notices)]
        )
