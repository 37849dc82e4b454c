"""Reads a run file into columns, block by block; an error names the bad line."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
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
BLOCK_BYTES: Final = 16 << 20
"""Bytes of a block."""
_THREADS: Final = min(4, os.cpu_count() or 1)
"""Blocks that are parsed at once."""
_PARSED: Final = 2 << 20
"""Bytes of a block that are parsed at once; blocks, not their parts, are parsed side by side."""

_TYPES: Final[Mapping[str, pa.DataType]] = {
    **dict.fromkeys(("trial", "turn", "round"), pa.int64()),
    **dict.fromkeys(("t_s", "uncertainty_s", "duration_s", "start_s"), pa.float64()),
    "warmup": pa.bool_(),
}
"""Types of columns; those of the others are strings."""
_KIND_AT: Final = len('{"type":"')
"""Where the writer's lines name their type, of which the first letter tells."""
_AS_WRITTEN: Final = ("mark", "stage", "outcome")
"""Types of line of which a run has many."""
_NUMBERS: Final = ("trial", "t_s", "duration_s", "start_s")
"""Their columns of numbers that hardly repeat, none of them the first or last of a line."""
_DISTINCT: Final = ("room", "unit")
"""Strings that hardly repeat within a block."""


class _Block(NamedTuple):
    """Lines that stand one after the other in the file; they are numbered from 0.

    Attributes:
        lines: How many.
        tables: A table for each type of line.
        begun: The trials that begin here, each with its first line.
        named: The trials that other lines name, each with the first of these lines.
    """

    lines: int
    tables: dict[str, Any]
    begun: pd.Series
    named: pd.Series


class Columns(NamedTuple):
    """Contents of a run file: a table for each type of line, in the order of the file.

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
_SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    kind: pa.schema([(name, _TYPES.get(name, pa.string())) for name in model.model_fields])
    for kind, model in _KINDS.items()
}
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
    begun, named = [], []
    warnings: list[str] = []
    under_way: deque[tuple[bytes, Future[_Block | None]]] = deque()
    number = 2

    def take() -> None:
        nonlocal number
        text, parsing = under_way.popleft()
        block = parsing.result() or _parse_by_line(path, text, number)
        for kind, table in block.tables.items():
            parts[kind].append(table)
        begun.append(block.begun + number)
        named.append(block.named + number)
        number += block.lines

    try:
        with path.open("rb") as file, ThreadPoolExecutor(_THREADS) as threads:
            # A run may still be running: lines written from now on are ignored.
            left = os.fstat(file.fileno()).st_size
            first = file.readline()
            header = _header(path, first)
            for text in _blocks(file, left - len(first), warnings):
                under_way.append((text, threads.submit(_parse, text)))
                if len(under_way) > _THREADS:
                    take()
            while under_way:
                take()
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}", _MADE_BY) from None
    ended = bool(parts["end"]) and sum(map(len, parts["end"])) > 0
    if not ended:
        warnings.append("The run did not end in order; its partial data is shown.")
    _check_order(path, begun, named)
    trials, marks, stages, notes, outcomes = (
        _table(kind, parts.pop(kind)) for kind in ("trial", "mark", "stage", "note", "outcome")
    )
    return header, Columns(trials, marks, stages, notes, outcomes, ended, warnings)


def _blocks(file: BinaryIO, left: int, warnings: list[str]) -> Iterator[bytes]:
    """Yields whole lines, many at a time, of so many bytes; a warning says what is left out."""
    while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
        block += file.readline(left - len(block))
        left -= len(block)
        if left <= 0:
            block = block.rstrip(b"\r\n")
            before, _, last = block.rpartition(b"\n")
            if block and not _is_json(last):
                block = before  # a crash has cut the last line
                warnings.append("The last line of the run file was cut off and is left out.")
            block += b"\n" if block else b""
        if block:
            yield block


def _header(path: Path, text: bytes) -> RunLine:
    if not text:
        raise RunFileError(f"{path} is empty", _MADE_BY)
    (content,) = _contents(path, [text], 1)
    if not isinstance(content, dict) or content.get("type") != "run":
        raise RunFileError(f"{path} does not start with the header line of a run", _MADE_BY)
    if content.get("format") != FORMAT:
        raise RunFileError(
            f"{path} has format {content.get('format')!r}; this labvoice reads format {FORMAT}",
            "read it with the labvoice version that wrote it",
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


def _parse(text: bytes) -> _Block | None:
    """Parses whole lines by columns; None where that does not do for one of them."""
    try:
        return _parse_by_type(text)
    except (pa.ArrowInvalid, ValidationError):
        return None


def _parse_by_type(block: bytes) -> _Block | None:
    """Parses the lines of each type at once, which takes half as long as all with all fields."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    lines.validate(full=True)
    letters = np.frombuffer(block, np.uint8)[np.minimum(offsets[:-1] + _KIND_AT, len(block) - 1)]
    parts: dict[str, Any] = {}
    places: dict[str, npt.NDArray[np.int64]] = {}
    known = 0
    for kind, schema in _SCHEMAS.items():
        of_kind = np.flatnonzero(letters == ord(kind[0]))
        some = lines.take(pa.array(of_kind))
        known += len(some)
        places[kind] = np.asarray(of_kind, np.int64)
        if kind == "note":
            notes = [NoteLine.model_validate_json(line) for line in some.to_pylist()]
            parts[kind] = _note_table(notes)
            continue
        part = _read_as_written(some, kind) if kind in _AS_WRITTEN and len(some) else None
        if part is None:
            part = _read_json(some, schema) if len(some) else schema.empty_table()
        checked = _checked(part, kind) if len(part) == len(some) else None
        if checked is None:
            return None
        parts[kind] = checked
    return _block(parts, places) if known == len(lines) else None


def _block(tables: dict[str, Any], places: Mapping[str, npt.NDArray[np.int64]]) -> _Block:
    """Puts together the tables of a block and where their lines stand in it."""
    firsts = {}
    for kind, table in tables.items():
        if "trial" in _SCHEMAS[kind].names:
            trials, at = np.unique(table["trial"].to_numpy(), return_index=True)
            firsts[kind] = pd.Series(places[kind][at], trials)
    begun = firsts.pop("trial")
    return _Block(sum(map(len, places.values())), tables, begun, pd.concat(list(firsts.values())))


def _text(lines: pa.StringArray) -> pa.BufferReader:
    """The lines as one text; each has its line feed."""
    _, offsets, text = lines.buffers()
    return pa.BufferReader(text.slice(0, np.frombuffer(offsets, np.int32)[len(lines)]))


def _read_as_written(lines: pa.Array, kind: str) -> pa.Table | None:
    """Reads lines that have all fields in the writer's order and no comma in a text, as CSV.

    That takes a third of the time of JSON. None for other lines.
    """
    schema = _SCHEMAS[kind]
    words = pa.dictionary(pa.int32(), pa.string())
    types = {name: pa.string() if name in _NUMBERS else words for name in schema.names}
    try:
        table = csv.read_csv(
            _text(lines),
            csv.ReadOptions(use_threads=False, column_names=schema.names, block_size=_PARSED),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(column_types=types, null_values=[]),
        ).unify_dictionaries()
        columns = []
        for index, field in enumerate(schema):
            begin = ("" if index else "{") + f'"{field.name}":'
            end = "}" if index == len(schema) - 1 else ""
            column = table[field.name].combine_chunks()
            read = _numbers if field.name in _NUMBERS else _values
            columns.append(read(column, begin, end, field.type))
        return pa.table(columns, schema.names)
    except (ValueError, pa.ArrowException):
        return None


def _numbers(column: pa.Array, begin: str, _: str, wanted: pa.DataType) -> pa.Array:
    """Returns the numbers of `"name":number` texts; raises `ValueError` for something else."""
    if not pc.all(pc.starts_with(column, begin)).as_py():
        raise ValueError("a field is missing, or out of order")
    texts = pc.utf8_slice_codeunits(column, len(begin))
    try:
        return texts.cast(wanted)
    except pa.ArrowInvalid:  # some are unknown
        unknown = pc.equal(texts, "null")
        return pc.if_else(unknown, pa.scalar(None, pa.string()), texts).cast(wanted)


def _values(column: pa.Array, begin: str, end: str, wanted: pa.DataType) -> pa.Array:
    """Returns the values of `"name":value` texts; raises `ValueError` for something else."""
    words = column.dictionary.to_pylist()
    if not all(word.startswith(begin) and word.endswith(end) for word in words):
        raise ValueError("a field is missing, or out of order")
    values = [json.loads(word[len(begin) : len(word) - len(end)]) for word in words]
    found = pa.DictionaryArray.from_arrays(column.indices, pa.array(values, wanted))
    return found if pa.types.is_string(wanted) else found.dictionary_decode()


def _read_json(lines: pa.Array, schema: pa.Schema) -> pa.Table:
    return arrow_json.read_json(
        _text(lines),
        arrow_json.ReadOptions(use_threads=False, block_size=_PARSED),
        arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _parse_by_line(path: Path, block: bytes, first: int) -> _Block:
    """Names the bad line of a block; where none is, the values were only written unusually."""
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    places: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    notes = []
    contents = _contents(path, block.split(b"\n")[:-1], first)
    for number, content in enumerate(contents, start=first):
        line = _validated(path, content, number)
        if isinstance(line, RunLine):
            raise RunFileError(f"line {number} of {path} starts a second run", _MADE_BY)
        places[line.type].append(number - first)
        if isinstance(line, NoteLine):
            notes.append(line)
        else:
            rows[line.type].append(line.model_dump())
    tables: dict[str, Any] = {
        kind: _note_table(notes)
        if kind == "note"
        else _checked(pa.Table.from_pylist(rows[kind], schema), kind)
        for kind, schema in _SCHEMAS.items()
    }
    return _block(tables, {kind: np.array(each, np.int64) for kind, each in places.items()})


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


def _checked(part: pa.Table, kind: str) -> pa.Table | None:
    """Checks the lines of one type by columns and fills in what may be left out; None if bad."""
    if not _is_valid(part, kind):
        return None
    for index, name in enumerate(part.column_names):
        column = part[name]
        field = _KINDS[kind].model_fields[name]
        if not field.is_required() and field.default is not None and column.null_count:
            column = pc.fill_null(column, field.default)
        if pa.types.is_string(column.type) and name not in _DISTINCT:
            column = column.dictionary_encode()
        part = part.set_column(index, name, column)
    return part.drop_columns("type")


def _is_valid(part: pa.Table, kind: str) -> bool:
    """Whether rows have what their type of line demands."""
    for name, column in zip(part.column_names, part.columns, strict=True):
        if _KINDS[kind].model_fields[name].is_required() and column.null_count:
            return False
        is_float = pa.types.is_floating(column.type)
        if is_float and not pc.all(pc.is_finite(column), min_count=0).as_py():
            return False
        words = set(pc.unique(column).to_pylist()) if name in (*_SEEN, "stage", "type") else set()
        if name in _SEEN and not words - {None} <= set(_SEEN[name]):
            return False
        if name == "type" and words - {kind}:
            return False
        if name == "stage" and not all(
            word.isidentifier() and word not in DERIVED_STAGES for word in words
        ):
            return False
    return True


def _note_table(notes: list[NoteLine]) -> pd.DataFrame:
    turns = [NO_TURN if note.turn is None else note.turn for note in notes]
    return pd.DataFrame(
        {
            "trial": np.array([note.trial for note in notes], np.int64),
            "turn": np.array(turns, np.int64),
            "facts": pd.Series([note.facts for note in notes], dtype=object),
        }
    )


def _table(kind: str, parts: list[Any]) -> pd.DataFrame:
    if kind == "note":
        frames: list[pd.DataFrame] = parts or [_note_table([])]
        return pd.concat(frames, ignore_index=True)
    empty = _checked(_SCHEMAS[kind].empty_table(), kind)
    table = pa.concat_tables([empty, *parts]).unify_dictionaries()
    parts.clear()  # or each column is there twice while pandas takes it
    if "turn" in table.column_names:
        turns = pc.fill_null(table["turn"], NO_TURN)
        table = table.set_column(table.column_names.index("turn"), "turn", turns)
    return pd.DataFrame(table.to_pandas(split_blocks=True, self_destruct=True))


def _check_order(path: Path, begun: list[pd.Series], named: list[pd.Series]) -> None:
    """Checks that no line names a trial before its start."""
    if not named:
        return
    starts, first = (pd.concat(each).groupby(level=0).min() for each in (begun, named))
    early = first[~(starts.reindex(first.index) < first)]
    if len(early):
        raise RunFileError(
            f"line {early.min()} of {path} refers to trial {early.idxmin()}, which has not started",
            _MADE_BY,
        )
