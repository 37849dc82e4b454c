"""A columnar cache beside a large run file, which loads ten times faster.

The run file is the record. The copy, `.NAME.columns`, is made when a run has ended in order, and is
looked at only while the run file has the size and the time of change that it was made of. It may be
deleted at any time: the run file is read instead.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
from pyarrow import ipc

from labvoice.runs import reader
from labvoice.runs.lines import FORMAT, RunLine
from labvoice.runs.reader import Columns

WORTH: Final = 16 << 20
"""Bytes of a run file from which on a copy is made; what is smaller loads in a moment."""
_VERSION: Final = 1
"""Version of the copy's own layout."""
_TABLES: Final = ("trials", "marks", "stages", "notes", "outcomes")


def read(path: Path) -> tuple[RunLine, Columns]:
    """Reads a run from its copy, or from its file where there is no copy of it as it is.

    Returns:
        As :func:`labvoice.runs.reader.read`.

    Raises:
        RunFileError: As there.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return _load(copy_of(path), _state(path))
    return reader.read(path)


def make(path: Path) -> None:
    """Makes the copy of a run that has ended; where it cannot be written, there is none.

    Raises:
        RunFileError: As :func:`labvoice.runs.reader.read`.
    """
    with suppress(OSError, pa.ArrowException):
        _save(copy_of(path), _state(path), *reader.read(path))


def copy_of(path: Path) -> Path:
    """Returns where a run file's copy is, if there is one."""
    return path.with_name(f".{path.name}.columns")


def _state(path: Path) -> list[int]:
    """What tells one content of the file from another."""
    found = path.stat()
    return [_VERSION, FORMAT, found.st_size, found.st_mtime_ns]


def _load(copy: Path, made_of: list[int]) -> tuple[RunLine, Columns]:
    with pa.memory_map(str(copy)) as source:
        first = ipc.open_stream(source)
        about = json.loads(first.schema.metadata[b"run"])
        if about["made_of"] != made_of:
            raise ValueError("the run file has changed")
        header = RunLine.model_validate(about["header"])
        frames = [_frame(first.read_all())]
        frames += [_frame(ipc.open_stream(source).read_all()) for _ in _TABLES[1:]]
    trials, marks, stages, notes, outcomes = frames
    notes["facts"] = pd.Series([json.loads(facts) for facts in notes["facts"]], dtype=object)
    return header, Columns(trials, marks, stages, notes, outcomes, True, about["warnings"])


def _frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(table.to_pandas(split_blocks=True, self_destruct=True))


def _save(copy: Path, made_of: list[int], header: RunLine, columns: Columns) -> None:
    about = {
        "made_of": made_of,
        "header": header.model_dump(mode="json"),
        "warnings": columns.warnings,
    }
    handle, name = tempfile.mkstemp(dir=copy.parent, prefix=copy.name)
    try:
        with os.fdopen(handle, "wb") as file:
            for kind in _TABLES:
                frame: pd.DataFrame = getattr(columns, kind)
                if kind == "notes":
                    frame = frame.assign(facts=[json.dumps(facts) for facts in frame["facts"]])
                table = pa.Table.from_pandas(frame, preserve_index=False)
                metadata = {**(table.schema.metadata or {}), b"run": json.dumps(about).encode()}
                table = table.replace_schema_metadata(metadata)
                options = ipc.IpcWriteOptions(compression="lz4")
                with ipc.new_stream(file, table.schema, options=options) as stream:
                    stream.write_table(table)
        os.replace(name, copy)
    finally:
        Path(name).unlink(missing_ok=True)
