"""Reads a run file: every line is checked, a crash's last line is left out, errors are in words."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from labvoice.errors import RunFileError
from labvoice.runs.lines import FORMAT, LINE, EndLine, Line, RunLine, TrialLine

_MADE_BY = "run files are written by `labvoice bench … --out RUN.jsonl`"


def read(path: Path) -> tuple[RunLine, list[Line], list[str]]:
    """Reads and checks a run file.

    Returns:
        Its first line, the others, and sentences about its state (cut off, not ended).

    Raises:
        RunFileError: There is no such file, or it is not a run of this format.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}", _MADE_BY) from None
    except UnicodeDecodeError:
        raise RunFileError(f"{path} is not a text file", _MADE_BY) from None
    if not texts:
        raise RunFileError(f"{path} is empty", _MADE_BY)
    warnings = []
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            if number == len(texts) > 1:
                warnings.append("The last line of the run file was cut off and is left out.")
                break
            raise RunFileError(f"line {number} of {path} is not JSON", _MADE_BY) from None
        if number == 1:
            _check_header(path, content)
        try:
            lines.append(LINE.validate_python(content))
        except ValidationError as error:
            first = error.errors()[0]
            raise RunFileError(
                f"line {number} of {path} is not a line of a run: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
                _MADE_BY,
            ) from None
    header, *rest = lines
    assert isinstance(header, RunLine)
    begun: set[int] = set()
    for number, line in enumerate(rest, start=2):
        if isinstance(line, TrialLine):
            begun.add(line.trial)
        elif isinstance(line, RunLine):
            raise RunFileError(f"line {number} of {path} begins a second run", _MADE_BY)
        elif not isinstance(line, EndLine) and line.trial not in begun:
            raise RunFileError(
                f"line {number} of {path} speaks of trial {line.trial}, which has not begun",
                _MADE_BY,
            )
    if not any(isinstance(line, EndLine) for line in rest):
        warnings.append("The run did not end in order; what it had recorded is shown.")
    return header, rest, warnings


def _check_header(path: Path, content: object) -> None:
    if not isinstance(content, dict) or content.get("type") != "run":
        raise RunFileError(f"{path} does not begin with the first line of a run", _MADE_BY)
    if content.get("format") != FORMAT:
        raise RunFileError(
            f"{path} has format {content.get('format')!r}; this labvoice reads format {FORMAT}",
            "read it with the labvoice that wrote it",
        )
