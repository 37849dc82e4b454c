"""What a user names as the agent to measure, before anything of it is started."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from labvoice.errors import UsageError
from labvoice.link.impairment import LinkProfile
from labvoice.protocol.metadata import check_name
from labvoice.settings import Settings, load_settings

Kind = Literal["own", "stock", "stock-naive", "program", "command", "named", "bot"]
BUILT_IN: Final = ("own", "stock", "stock-naive")
"""Agents that come with labvoice: its own, and plain livekit-agents workers with its models."""
STOCK_PROGRAMS: Final = {
    "stock": "labvoice.bench.stock_agent",
    "stock-naive": "labvoice.bench.stock_naive_agent",
}
"""Modules that the workers of livekit-agents' defaults run."""
PLACEHOLDERS: Final = ("url", "token", "room")
"""Placeholders in braces in a bot's command, replaced for each call."""
_AT_REVISION: Final = re.compile(r"(?P<path>.+\.py)@(?P<revision>[^@\s]+)")


@dataclass(frozen=True)
class Target:
    """The agent that a call or a benchmark measures.

    An agent that is not labvoice's is started as it is: nothing is imported into it and nothing
    is asked of it.

    Attributes:
        kind: `own`: labvoice's agent; `stock` and `stock-naive`: a plain livekit-agents worker;
            `program`: a Python script that is started as its author starts it, with `start`;
            `command`: any command line that starts a worker; `named`: an agent that is registered
            already; `bot`: a command that is started for each call and joins the room by itself.
        text: The script's path, the command line, or the agent's name; empty for a named one that
            serves every room.
        python: Interpreter for a script; the one of its folder's `.venv`, else this process's own,
            when not given.
        revision: Git revision of a script; the files as they are where empty.
        env: Variables that are set for it.
        settings: For labvoice's own agents: settings by field name.
        metadata: Text that its job gets as metadata; the participant's metadata of a bot.
        attributes: Attributes of the caller as a participant.
        room: Pattern of the rooms' names, with `{id}` where each differs; empty: `lab-{id}`.
        room_metadata: Metadata of the rooms.
        greeting_timeout_s: How long a caller waits, in seconds, to find out whether the agent
            greets; once in a lab.
        link: The link of the media of those who call it; none where not given.
    """

    kind: Kind
    text: str = ""
    python: Path | None = None
    revision: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    room: str = ""
    room_metadata: str = ""
    greeting_timeout_s: float = 8.0
    link: LinkProfile | None = None

    def __post_init__(self) -> None:
        if self.room:
            if self.room.count("{id}") != 1:
                raise UsageError(
                    f"the room pattern {self.room!r} gives every call the same room",
                    "write `{id}` where the rooms differ, such as `support-{id}`",
                )
            check_name(self.room.replace("{id}", "0"))

    @classmethod
    def own(cls, **settings: Any) -> Target:
        """Returns labvoice's own agent, with settings by field name that are its alone.

        Raises:
            SettingsError: There is no such setting, or a value is malformed.
        """
        checked = load_settings(**settings)
        return cls("own", settings={name: getattr(checked, name) for name in settings})

    @classmethod
    def program(
        cls,
        path: Path | str,
        *,
        python: Path | None = None,
        revision: str = "",
        env: Mapping[str, str] | None = None,
        metadata: str = "",
    ) -> Target:
        """Returns the target of a Python script.

        Args:
            path: The script.
            python: As :attr:`python`.
            revision: As :attr:`revision`; the script need not be there any more.
            env: As :attr:`env`.
            metadata: As :attr:`metadata`.

        Raises:
            UsageError: There is no such file, or no such interpreter.
        """
        if not revision and not Path(path).is_file():
            raise UsageError(f"there is no file {path}", "name the script that starts the worker")
        if python is not None and not python.is_file():
            raise UsageError(
                f"there is no interpreter {python}", "name the `python` of the agent's environment"
            )
        return cls("program", str(path), python, revision, dict(env or {}), metadata=metadata)

    @classmethod
    def command(
        cls, line: str, *, env: Mapping[str, str] | None = None, metadata: str = ""
    ) -> Target:
        """Returns the target of a command line that starts a worker, in any language.

        Raises:
            UsageError: It is empty, or its quotes do not match.
        """
        if not _words(line):
            raise UsageError("the command line is empty", 'such as "node agent.js start"')
        return cls("command", line, env=dict(env or {}), metadata=metadata)

    @classmethod
    def named(cls, name: str = "", *, metadata: str = "") -> Target:
        """Returns the target of an agent that is registered already, at `LIVEKIT_URL`.

        Args:
            name: Name of the agent; empty for one that serves every room.
            metadata: As :attr:`metadata`.

        Raises:
            RoomNameError: It cannot be a name.
        """
        if name:
            check_name(name, "agent name")
        return cls("named", name, metadata=metadata)

    @classmethod
    def bot(cls, line: str, *, env: Mapping[str, str] | None = None, metadata: str = "") -> Target:
        """Returns the target of a command that is started for each call and joins by itself.

        Args:
            line: The command line, with `{url}`, `{token}` and `{room}` where it takes them. They
                are in its environment too: `LIVEKIT_URL`, `LIVEKIT_TOKEN`, `LIVEKIT_ROOM_NAME`.
            env: As :attr:`env`.
            metadata: As :attr:`metadata`.

        Raises:
            UsageError: It is empty, its quotes do not match, or something else is in braces.
        """
        if not _words(line):
            raise UsageError(
                "the bot's command line is empty", 'such as "bot:python bot.py {url} {token}"'
            )
        unknown = set(re.findall(r"\{([a-z_]+)\}", line)) - set(PLACEHOLDERS)
        if unknown:
            raise UsageError(
                f"a bot's command has no {{{min(unknown)}}}",
                "{url}, {token} and {room} are put in for each call",
            )
        return cls("bot", line, env=dict(env or {}), metadata=metadata)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        python: Path | None = None,
        env: Mapping[str, str] | None = None,
        metadata: str = "",
    ) -> Target:
        """Reads AGENT, as every command takes it.

        Args:
            text: Nothing or `own`, `stock`, `stock-naive`; `path/agent.py`,
                `path/agent.py@REVISION`; `name:NAME`, with nothing after the colon for an agent
                that serves every room; `bot:COMMAND`; or a command line.
            python: As :attr:`python`; only for a script.
            env: As :attr:`env`; not for an agent that runs already. For labvoice's own agents the
                variables are those of the settings, such as `LABVOICE_STT`.
            metadata: As :attr:`metadata`; not for labvoice's own agents.

        Raises:
            UsageError: It cannot be meant so.
        """
        text = text.strip() or "own"
        target = cls._parse(text, python, env or {})
        if python is not None and target.kind != "program":
            raise UsageError("--python is for scripts", "write the interpreter into the command")
        if metadata and target.kind in BUILT_IN:
            raise UsageError(
                f"the agent {target.kind!r} takes no metadata of yours", "leave --metadata out"
            )
        return dataclasses.replace(target, metadata=metadata)

    @classmethod
    def _parse(cls, text: str, python: Path | None, env: Mapping[str, str]) -> Target:
        for kind in ("own", "stock", "stock-naive"):
            if text == kind:
                own = cls.own(**_settings_of(env))
                return dataclasses.replace(own, kind=kind)
        if text.startswith("name:"):
            if env or python:
                raise UsageError(
                    "an agent that is registered already gets no environment or interpreter",
                    "leave out --env and --python, or name the script that starts it",
                )
            return cls.named(text.removeprefix("name:").strip())
        if text.startswith("bot:"):
            return cls.bot(text.removeprefix("bot:").strip(), env=env)
        if _is_script(text):
            return cls.program(text, python=python, env=env)
        at = _AT_REVISION.fullmatch(text)
        if at is not None and _is_script(at["path"]):
            return cls.program(at["path"], python=python, revision=at["revision"], env=env)
        return cls.command(text, env=env)

    def changed(self, *, python: Path | None, env: Mapping[str, str]) -> Target:
        """Returns it with another interpreter, where one is given, and these variables too.

        Raises:
            UsageError: As :meth:`parse`.
        """
        more = Target.parse(str(self), python=python, env=env)
        return dataclasses.replace(
            self,
            python=more.python or self.python,
            env={**self.env, **more.env},
            settings={**self.settings, **more.settings},
        )

    def __str__(self) -> str:
        match self.kind:
            case "named":
                return f"name:{self.text}"
            case "bot":
                return f"bot:{self.text}"
            case "program" if self.revision:
                return f"{self.text}@{self.revision}"
            case "program" | "command":
                return self.text
        return self.kind

    @property
    def starts_worker(self) -> bool:
        """Whether it is a worker of another program, which a lab starts."""
        return self.kind in ("program", "command")

    @property
    def as_started(self) -> Target:
        """What is started of it, without what each call brings, and with paths in full.

        Two targets that are equal so share one worker.
        """
        script = self.kind == "program"
        return Target(
            self.kind,
            os.path.abspath(self.text) if script else self.text,
            self.python and Path(os.path.abspath(self.python)),
            self.revision,
            self.env,
            self.settings,
            self.metadata if self.kind == "bot" else "",  # it is started for each call
        )

    def argv(self, script: Path | None = None) -> list[str]:
        """Returns the command that starts the worker.

        Args:
            script: Where the script lies; its path when not given.

        Raises:
            UsageError: Nothing starts such an agent, or not by one command.
        """
        match self.kind:
            case "program":
                path = Path(self.text).absolute()
                python = self.python.absolute() if self.python else _interpreter_beside(path)
                return [str(python), str(script or path), "start"]
            case "command":
                return _words(self.text)
        raise UsageError(f"no command starts a worker of {str(self)!r}")

    def bot_argv(self, **values: str) -> list[str]:
        """Returns the command that starts the bot of one call.

        Args:
            values: What is put in for each of :data:`PLACEHOLDERS`.
        """
        assert self.kind == "bot"
        return [
            re.sub(r"\{(url|token|room)\}", lambda found: values[found[1]], word)
            for word in _words(self.text)
        ]

    @property
    def folder(self) -> Path:
        """The working directory of what is started."""
        return Path(self.text).absolute().parent if self.kind == "program" else Path.cwd()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"the command line {line!r} cannot be read: {error}") from None


def _is_script(text: str) -> bool:
    """Whether a script is meant, there or not, and no command that ends with one."""
    return text.endswith(".py") and (Path(text).is_file() or len(text.split()) == 1)


def _settings_of(env: Mapping[str, str]) -> dict[str, str]:
    """Returns settings of labvoice's agent by field name, from variables of the environment.

    Raises:
        UsageError: There is no such variable.
    """
    fields = {str(info.validation_alias): name for name, info in Settings.model_fields.items()}
    for name in env:
        if name not in fields:
            allowed = ", ".join(sorted(each for each in fields if each.startswith("LABVOICE_")))
            raise UsageError(f"labvoice's agent has no setting {name}", f"one of {allowed}")
    return {fields[name]: value for name, value in env.items()}


def _interpreter_beside(script: Path) -> Path:
    """Returns the interpreter of the script's own environment, else that of this process."""
    for folder in script.parents[:2]:
        candidate = folder / ".venv" / "bin" / "python"
        if candidate.is_file():
            return candidate
    return Path(sys.executable)
