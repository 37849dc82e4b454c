"""`labvoice.toml`: agents and arms that are too long for a command line."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labvoice.errors import LabvoiceError, UsageError
from labvoice.link.impairment import LinkProfile
from labvoice.targets.target import BUILT_IN, Target

CONFIG_NAME: Final = "labvoice.toml"


class _Agent(BaseModel):
    """Fields of an agent."""

    model_config = ConfigDict(extra="forbid")

    agent: str | None = None
    python: Path | None = None
    env: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    metadata: str | dict[str, Any] = ""
    attributes: dict[str, str] = Field(default_factory=dict)
    room: str = ""
    room_metadata: str | dict[str, Any] = ""
    greeting_timeout_s: float = Field(default=Target.greeting_timeout_s, ge=0)
    link: str = ""


class _File(_Agent):
    arms: dict[str, _Agent] = Field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """What `labvoice.toml` says.

    Attributes:
        agent: The agent of a command that names none; None where the file names none.
        arms: Agents by the names of their arms.
    """

    agent: Target | None = None
    arms: Mapping[str, Target] = field(default_factory=dict)


def read_config(path: Path | None = None) -> Config:
    """Reads `labvoice.toml`.

    Keys at the top are of the agent that a command takes which names none: `agent` (AGENT),
    `python`, `env`, `settings` (of labvoice's own agent, by field name), `metadata` (text, a table
    that is sent as JSON, or `@FILE`), `attributes` (of the caller), `room` (a pattern with
    `{id}`), `room_metadata`, `greeting_timeout_s` and `link` (of the caller's media). The same keys
    stand in `[arms.NAME]`; what is left out there but `agent` and `settings` is taken from the top.
    Scripts, interpreters and files are looked for from the folder of the file.

    Args:
        path: The file; `labvoice.toml` in the working directory when not given, and nothing where
            there is none.

    Raises:
        UsageError: It cannot be read, or a key or a value is not known; named with the file.
    """
    found = path or Path(CONFIG_NAME)
    if path is None and not found.is_file():
        return Config()
    try:
        read = _File.model_validate(tomllib.loads(found.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{found} cannot be read: {error}", "name a file by --config") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{found} is no TOML: {error}", "correct the line") from None
    except ValidationError as error:
        raise _refusal(found, error) from None
    top = read.model_dump(exclude={"arms"}, exclude_unset=True)
    arms = {}
    for name, arm in read.arms.items():
        common = {key: value for key, value in top.items() if key not in ("agent", "settings")}
        given = {**common, **arm.model_dump(exclude_unset=True)}
        arms[name] = _target(found, f"arms.{name}", _Agent.model_validate(given))
    return Config(_target(found, "", read) if read.agent is not None else None, arms)


def _refusal(path: Path, error: ValidationError) -> UsageError:
    first = error.errors()[0]
    *where, key = map(str, first["loc"])
    shown = ".".join([*where, key])
    allowed = ", ".join((_Agent if where else _File).model_fields)
    if first["type"] == "extra_forbidden":
        return UsageError(f"{path}: there is no key {shown!r}", f"allowed: {allowed}")
    return UsageError(f"{path}: {shown}: {first['msg']}", f"allowed keys: {allowed}")


def _target(path: Path, where: str, given: _Agent) -> Target:
    """Returns the target of an entry of the file."""
    folder = path.parent
    try:
        text = (given.agent or "").strip()
        if re.fullmatch(r"\S+\.py(@\S+)?", text):
            text = str(folder / text)
        target = Target.parse(
            text,
            python=folder / given.python if given.python else None,
            env=given.env,
            metadata=_text(given.metadata, folder),
        )
        if given.settings:
            if target.kind not in BUILT_IN:
                raise UsageError(
                    f"settings are of labvoice's own agent, and {str(target)!r} is another",
                    "give a foreign agent `env`",
                )
            own = Target.own(**{**target.settings, **given.settings})
            target = dataclasses.replace(target, settings=own.settings)
        return dataclasses.replace(
            target,
            attributes=given.attributes,
            room=given.room,
            room_metadata=_text(given.room_metadata, folder),
            greeting_timeout_s=given.greeting_timeout_s,
            link=LinkProfile.parse(given.link) if given.link else None,
        )
    except LabvoiceError as error:
        at = f"{path}: {where}" if where else str(path)
        raise UsageError(f"{at}: {error.observed}", error.hint) from None


def _text(given: str | Mapping[str, Any], folder: Path) -> str:
    return read_text(given, folder) if isinstance(given, str) else json.dumps(dict(given))


def read_text(text: str, folder: Path = Path()) -> str:
    """Returns a text, or the content of the file that `@FILE` names.

    Args:
        text: The text.
        folder: Where a file is looked for.

    Raises:
        UsageError: The file cannot be read.
    """
    if not text.startswith("@"):
        return text
    try:
        return (folder / text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{text[1:]} cannot be read: {error}", "name a text file") from None
