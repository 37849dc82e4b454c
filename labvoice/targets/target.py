"""What a user names as the agent to measure, before anything of it is started."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from labvoice.errors import UsageError

Kind = Literal["program", "command", "named"]


@dataclass(frozen=True)
class Target:
    """An agent that is not labvoice's; nothing is imported into it and nothing is asked of it.

    Attributes:
        kind: `program`: a Python script that is started as its author starts it, with `start`;
            `command`: any command line that starts a worker; `named`: an agent that is registered
            already.
        text: The script's path, the command line, or the agent's name.
        python: Interpreter for a script; the one of its folder's `.venv`, else this process's own,
            when not given.
        env: Variables that are set for it.
        metadata: Text that its job gets as metadata.
    """

    kind: Kind
    text: str
    python: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""

    @classmethod
    def program(
        cls,
        path: Path | str,
        *,
        python: Path | None = None,
        env: Mapping[str, str] | None = None,
        metadata: str = "",
    ) -> Target:
        """Returns the target of a Python script.

        Raises:
            UsageError: There is no such file, or no such interpreter.
        """
        if not Path(path).is_file():
            raise UsageError(f"there is no file {path}", "name the script that starts the worker")
        if python is not None and not python.is_file():
            raise UsageError(
                f"there is no interpreter {python}", "name the `python` of the agent's environment"
            )
        return cls("program", str(path), python, dict(env or {}), metadata)

    @classmethod
    def command(
        cls, line: str, *, env: Mapping[str, str] | None = None, metadata: str = ""
    ) -> Target:
        """Returns the target of a command line that starts a worker, in any language.

        Raises:
            UsageError: It is empty, or its quotes do not match.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"the command line {line!r} cannot be read: {error}") from None
        if not words:
            raise UsageError("the command line is empty", 'such as "node agent.js start"')
        return cls("command", line, None, dict(env or {}), metadata)

    @classmethod
    def named(cls, name: str, *, metadata: str = "") -> Target:
        """Returns the target of an agent that is registered already, at `LIVEKIT_URL`."""
        return cls("named", name, metadata=metadata)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        python: Path | None = None,
        env: Mapping[str, str] | None = None,
        metadata: str = "",
    ) -> Target:
        """Reads what a command line names as an agent.

        Args:
            text: `path/agent.py`, `name:NAME`, or a command line.
            python: As :attr:`python`; only for a script.
            env: As :attr:`env`; not for an agent that runs already.
            metadata: As :attr:`metadata`.

        Raises:
            UsageError: It cannot be meant so.
        """
        if text.startswith("name:"):
            if env or python:
                raise UsageError(
                    "an agent that is registered already gets no environment or interpreter",
                    "leave out --env and --python, or name the script that starts it",
                )
            return cls.named(text.removeprefix("name:"), metadata=metadata)
        if text.endswith(".py"):
            return cls.program(text, python=python, env=env, metadata=metadata)
        if python is not None:
            raise UsageError("--python is for scripts", "write the interpreter into the command")
        return cls.command(text, env=env, metadata=metadata)

    def argv(self) -> list[str]:
        """Returns the command that starts the worker.

        Raises:
            UsageError: The agent is registered already: nothing starts it.
        """
        match self.kind:
            case "program":
                script = Path(self.text).resolve()
                return [str(self.python or _interpreter_beside(script)), str(script), "start"]
            case "command":
                return shlex.split(self.text)
            case "named":
                raise UsageError(f"the agent {self.text!r} is registered already")

    @property
    def folder(self) -> Path:
        """The working directory of what is started."""
        return Path(self.text).resolve().parent if self.kind == "program" else Path.cwd()


def _interpreter_beside(script: Path) -> Path:
    """Returns the interpreter of the script's own environment, else that of this process."""
    for folder in script.parents[:2]:
        candidate = folder / ".venv" / "bin" / "python"
        if candidate.is_file():
            return candidate
    return Path(sys.executable)
