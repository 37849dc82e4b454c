"""Reads a run file into columns: blocks are parsed at once, a bad line is named in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json
from pydantic import BaseModel, ValidationError

from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import OUTCOMES
from labvoice.runs.lines import (
    DERIVED_STAGES,
    FORMAT,
    LINE,
    MARKS,
    EndLine,
    MarkLine,
    NoteLine,
    OutcomeLine,
    RunLine,
    StageLine,
    TrialLine,
)

NO_TURN: Final = np.iinfo(np.int64).min
"""Stands in columns for the turn of a connection, and sorts before every turn."""

_MADE_BY = "run files are written by `labvoice bench … --out RUN.jsonl`"
_BLOCK: Final = 16 << 20
"""Bytes that are parsed at once."""
_PARSED: Final = 2 << 20
"""Bytes that one thread parses at once."""
_NOTE: Final = b'{"type":"note"'
"""How a note begins. Notes hold any JSON and are read one by one."""
_FACTS: Final = "facts"

_TYPES: Final[Mapping[str, pa.DataType]] = {
    **dict.fromkeys(("trial", "turn", "round"), pa.int64()),
    **dict.fromkeys(("t_s", "uncertainty_s", "duration_s", "start_s"), pa.float64()),
    "warmup": pa.bool_(),
}
"""Types of columns; those of the others are strings."""
_DISTINCT: Final = ("room", "unit")
"""Strings that hardly repeat within a block."""


class Columns(NamedTuple):
    """What a run file says, a table for each type of line; rows are in the order of the file.

    Attributes:
        trials: trial, room, arm, warmup, unit, round.
        marks: trial, turn, mark, t_s, clock, uncertainty_s.
        stages: trial, turn, stage, duration_s, start_s, source.
        notes: trial, turn, facts.
        outcomes: trial, turn, outcome, detail.
        ended: Whether the run ended in order.
        warnings: Sentences about the file's state.
    """

    trials: pd.DataFrame
    marks: pd.DataFrame
    stages: pd.DataFrame
    notes: pd.DataFrame
    outcomes: pd.DataFrame
    ended: bool
    warnings: list[str]


_KINDS: Final[Mapping[str, type[BaseModel]]] = {
    "trial": TrialLine,
    "mark": MarkLine,
    "stage": StageLine,
    "note": NoteLine,
    "outcome": OutcomeLine,
    "end": EndLine,
}
_FIELDS: Final = {
    kind: [name for name in model.model_fields if name != "type"] for kind, model in _KINDS.items()
}
_SCHEMA: Final = pa.schema(
    [
        (name, _TYPES.get(name, pa.string()))
        for name in dict.fromkeys(
            ["type", *(name for names in _FIELDS.values() for name in names if name != _FACTS)]
        )
    ]
)
_SEEN: Final = {"mark": MARKS, "outcome": OUTCOMES, "clock": ("caller", "worker")}
"""Columns whose words are those of a vocabulary."""


def read(path: Path) -> tuple[RunLine, Columns]:
    """Reads and checks a run file.

    Returns:
        Its first line, and the others as columns.

    Raises:
        RunFileError: There is no such file, or it is not a run of this format.
    """
    parts: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    warnings = []
    number = 1
    try:
        with path.open("rb") as file:
            header = _header(path, file.readline())
            while block := file.read(_BLOCK) + file.readline():
                if not file.peek(1):
                    # A crash cuts the last line.
                    block = block.rstrip(b"\r\n")
                    before, _, last = block.rpartition(b"\n")
                    if block and not _is_json(last):
                        block = before
                        warnings.append(
                            "The last line of the run file was cut off and is left out."
                        )
                if block:
                    lines = block.count(b"\n") + (not block.endswith(b"\n"))
                    for kind, part in _parse(path, block, number + 1, lines).items():
                        parts[kind].append(part)
                    number += lines
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}", _MADE_BY) from None
    ended = bool(parts["end"]) and sum(map(len, parts["end"])) > 0
    if not ended:
        warnings.append("The run did not end in order; what it had recorded is shown.")
    tables = {kind: _table(kind, parts.pop(kind)) for kind in _FIELDS}
    _check_order(path, tables)
    trials, marks, stages, notes, outcomes = (
        tables[kind].drop(columns="line") for kind in ("trial", "mark", "stage", "note", "outcome")
    )
    return header, Columns(trials, marks, stages, notes, outcomes, ended, warnings)


def _header(path: Path, text: bytes) -> RunLine:
    if not text:
        raise RunFileError(f"{path} is empty", _MADE_BY)
    (content,) = _contents(path, [text], 1)
    if not isinstance(content, dict) or content.get("type") != "run":
        raise RunFileError(f"{path} does not begin with the first line of a run", _MADE_BY)
    if content.get("format") != FORMAT:
        raise RunFileError(
            f"{path} has format {content.get('format')!r}; this labvoice reads format {FORMAT}",
            "read it with the labvoice that wrote it",
        )
    header = _validated(path, content, 1)
    assert isinstance(header, RunLine)
    return header


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parse(path: Path, block: bytes, first: int, count: int) -> dict[str, pa.Table]:
    """Parses whole lines into a table for each type; `first` is the number of the first one."""
    numbers = np.arange(first, first + count)
    rest, notes = block, []
    if _NOTE in block:
        lines = block.split(b"\n")[:count]
        is_note = np.fromiter((line.startswith(_NOTE) for line in lines), np.bool_, count)
        notes = [
            (line, int(number))
            for line, number, one in zip(lines, numbers, is_note, strict=True)
            if one
        ]
        rest = b"\n".join(line for line, one in zip(lines, is_note, strict=True) if not one)
        numbers = numbers[~is_note]
    try:
        rest.decode()
        table = (
            arrow_json.read_json(
                pa.BufferReader(rest),
                arrow_json.ReadOptions(block_size=_PARSED),
                arrow_json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error"),
            )
            if rest.strip()
            else _SCHEMA.empty_table()
        )
        parts = _split(table, numbers) if len(table) == len(numbers) else None
        said = [NoteLine.model_validate_json(line) for line, _ in notes]
    except (pa.ArrowInvalid, UnicodeDecodeError, ValidationError):
        parts = None
    if parts is None:
        return _parse_by_line(path, block.split(b"\n")[:count], first)
    parts["note"] = _note_table(said, [number for _, number in notes])
    return parts


def _parse_by_line(path: Path, lines: list[bytes], first: int) -> dict[str, pa.Table]:
    """Names the bad line of a block; where none is, the values were only written unusually."""
    rows: list[dict[str, Any]] = []
    notes, numbers, of_notes = [], [], []
    for number, content in enumerate(_contents(path, lines, first), start=first):
        line = _validated(path, content, number)
        if isinstance(line, RunLine):
            raise RunFileError(f"line {number} of {path} begins a second run", _MADE_BY)
        if isinstance(line, NoteLine):
            notes.append(line)
            of_notes.append(number)
        else:
            rows.append(line.model_dump())
            numbers.append(number)
    parts = _split(pa.Table.from_pylist(rows, _SCHEMA), np.array(numbers, np.int64))
    assert parts is not None
    return {**parts, "note": _note_table(notes, of_notes)}


def _contents(path: Path, lines: Iterable[bytes], first: int) -> Iterable[Any]:
    for number, text in enumerate(lines, start=first):
        try:
            yield json.loads(text.decode())
        except UnicodeDecodeError:
            raise RunFileError(f"{path} is not a text file", _MADE_BY) from None
        except json.JSONDecodeError:
            raise RunFileError(f"line {number} of {path} is not JSON", _MADE_BY) from None


def _validated(path: Path, content: object, number: int) -> Any:
    try:
        return LINE.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunFileError(
            f"line {number} of {path} is not a line of a run: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            _MADE_BY,
        ) from None


def _split(table: pa.Table, numbers: npt.NDArray[np.int64]) -> dict[str, pa.Table] | None:
    """Parts a table by the type of line and checks it by columns; None where a check fails."""
    table = table.append_column("line", pa.array(numbers))
    parts, known = {}, 0
    for kind, names in _FIELDS.items():
        if kind == "note":
            continue
        part = table.filter(pc.equal(table["type"], kind))
        known += len(part)
        if not _is_valid(part, _KINDS[kind], {"type", "line", *names}):
            return None
        part = part.select([*names, "line"])
        for index, name in enumerate(names):
            column = part[name]
            field = _KINDS[kind].model_fields[name]
            if not field.is_required() and field.default is not None and column.null_count:
                column = pc.fill_null(column, field.default)
            if pa.types.is_string(column.type) and name not in _DISTINCT:
                column = column.dictionary_encode()
            part = part.set_column(index, name, column)
        parts[kind] = part
    return parts if known == len(table) else None


def _is_valid(part: pa.Table, model: type[BaseModel], names: set[str]) -> bool:
    """Whether rows have what their type of line demands, and nothing else."""
    for name in part.column_names:
        column = part[name]
        if name not in names:
            if column.null_count < len(column):
                return False
            continue
        field = model.model_fields.get(name)
        if field is not None and field.is_required() and column.null_count:
            return False
        is_float = pa.types.is_floating(column.type)
        if is_float and not pc.all(pc.is_finite(column), min_count=0).as_py():
            return False
        words = set(pc.unique(column).to_pylist()) if name in (*_SEEN, "stage") else set()
        if name in _SEEN and not words - {None} <= set(_SEEN[name]):
            return False
        if name == "stage" and not all(
            word.isidentifier() and word not in DERIVED_STAGES for word in words
        ):
            return False
    return True


def _note_table(notes: list[NoteLine], numbers: list[int]) -> pd.DataFrame:
    turns = [NO_TURN if note.turn is None else note.turn for note in notes]
    return pd.DataFrame(
        {
            "trial": np.array([note.trial for note in notes], np.int64),
            "turn": np.array(turns, np.int64),
            "facts": pd.Series([note.facts for note in notes], dtype=object),
            "line": np.array(numbers, np.int64),
        }
    )


def _table(kind: str, parts: list[Any]) -> pd.DataFrame:
    if kind == "note":
        frames: list[pd.DataFrame] = parts or [_note_table([], [])]
        return pd.concat(frames, ignore_index=True)
    empty = _split(_SCHEMA.empty_table(), np.array([], np.int64))
    assert empty is not None
    table = pa.concat_tables([empty[kind], *parts]).unify_dictionaries()
    if "turn" in table.column_names:
        turns = pc.fill_null(table["turn"], NO_TURN)
        table = table.set_column(table.column_names.index("turn"), "turn", turns)
    return pd.DataFrame(table.to_pandas(split_blocks=True, self_destruct=True))


def _check_order(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Checks that no line speaks of a trial before it has begun."""
    trials = tables["trial"].drop_duplicates("trial").set_index("trial")["line"]
    early = []
    for kind in ("mark", "stage", "note", "outcome"):
        table = tables[kind]
        found = trials.index.get_indexer(pd.Index(table["trial"]))
        lines = table["line"].to_numpy()
        begun = trials.to_numpy()[found] if len(trials) else lines
        wrong = np.flatnonzero((found < 0) | (begun > lines))
        if wrong.size:
            early.append((int(lines[wrong[0]]), int(table["trial"].iloc[wrong[0]])))
    if early:
        number, trial = min(early)
        raise RunFileError(
            f"line {number} of {path} speaks of trial {trial}, which has not begun", _MADE_BY
        )
