"""AGENT on the command line: `--agent`, `--arm`, `--env` and their like, for every command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from labvoice.cli.common import AGENT_HELP
from labvoice.errors import UsageError

if TYPE_CHECKING:  # it takes a second to import, which `--help` need not wait for
    from labvoice.speech.conditions import Conditions
    from labvoice.targets.target import Target

_LINKS: Final = "wifi, 4g, satellite, train, or such as delay=80ms,jitter=30ms,loss=3%,rate=64kbit."

MetadataOption = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        metavar="TEXT|@FILE",
        help="Sent to an agent of your own as its job's metadata, unchanged.",
    ),
]
LinkOption = Annotated[
    str | None,
    typer.Option("--link", metavar="LINK", help=f"A bad network for the caller's media: {_LINKS}"),
]
LinksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--link",
        metavar="[ARM:]LINK",
        help=f"A bad network for the callers' media, or for that of one arm: {_LINKS}",
    ),
]
WireOption = Annotated[
    bool, typer.Option("--wire", help="Date the packets at both ends: what each end adds.")
]


@dataclass(frozen=True)
class AgentOptions:
    """The options that name agents, as given."""

    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help=AGENT_HELP)] = None
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME=AGENT",
            help="An agent to measure beside others; NAME alone is an arm of labvoice.toml.",
        ),
    ] = None
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="[ARM:]KEY=VALUE",
            help="Set for the agent, or for that of one arm; labvoice's own takes its settings so.",
        ),
    ] = None
    python: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="[ARM:]PATH",
            help="Interpreter of the agent's environment; that of .venv beside the script if "
            "absent.",
        ),
    ] = None
    metadata: MetadataOption = None
    greeting_timeout: Annotated[
        float | None,
        typer.Option(
            "--greeting-timeout",
            min=0,
            help="Seconds to find out, once, whether an agent of your own greets; 8 if absent.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Read agents and arms there; labvoice.toml here if absent."),
    ] = None

    def one(self) -> Target | None:
        """Returns the one agent that a command or `labvoice.toml` names; None if neither does.

        Raises:
            UsageError: The options contradict each other.
        """
        from labvoice.targets.config import read_config

        named = self.agent if self.agent is not None else read_config(self.config).agent
        given = self.env or self.python or self.metadata or self.greeting_timeout is not None
        if named is None and not given:
            return None
        return self._with_options({} if named is None else {"agent": named}).get("agent")

    def arms(self) -> dict[str, Target]:
        """Returns the agents that a command names, by the names of their arms.

        Without `--agent` and `--arm` they are the arms of `labvoice.toml`, otherwise its agent,
        and none without such a file.

        Raises:
            UsageError: The options contradict each other.
        """
        from labvoice.targets.config import read_config

        if self.agent is not None and self.arm:
            raise UsageError("both --agent and --arm are given", "name every agent by --arm")
        file = read_config(self.config)
        named: dict[str, str | Target] = {}
        for text in self.arm or ():
            name, equals, value = text.partition("=")
            if name in named:
                raise UsageError(f"the arm {name} is named twice", "name each arm once")
            if not equals and name not in file.arms:
                known = f"; labvoice.toml has {', '.join(file.arms)}" if file.arms else ""
                raise UsageError(f"--arm {name!r} names no agent{known}", "--arm NAME=AGENT")
            named[name] = value if equals else file.arms[name]
        if self.agent is not None:
            named["agent"] = self.agent
        if not named:
            named |= file.arms or ({"agent": file.agent} if file.agent is not None else {})
        return self._with_options(named)

    def _with_options(self, named: dict[str, str | Target]) -> dict[str, Target]:
        from labvoice.targets.config import read_text
        from labvoice.targets.target import BUILT_IN, Target

        variables: dict[str, dict[str, str]] = {name: {} for name in named}
        for each in self.env or ():
            for name, text in _of_arms("--env", each, named):
                key, equals, value = text.partition("=")
                if not equals or not key.isidentifier():
                    raise UsageError(f"--env: {key!r} is no KEY=VALUE", "such as --env STT=base")
                variables[name][key] = value
        interpreters: dict[str, Path] = {}
        for each in self.python or ():
            for name, text in _of_arms("--python", each, named):
                interpreters[name] = Path(text)
        found: dict[str, Target] = {}
        for name, given in named.items():
            target = Target.parse(given) if isinstance(given, str) else given
            found[name] = target.changed(python=interpreters.get(name), env=variables[name])
        changes: dict[str, Any] = {}
        if self.metadata and (text := read_text(self.metadata)):
            changes["metadata"] = text
        if self.greeting_timeout is not None:
            changes["greeting_timeout_s"] = self.greeting_timeout
        foreign = [name for name, target in found.items() if target.kind not in BUILT_IN]
        if changes and not foreign:
            option = "--metadata" if "metadata" in changes else "--greeting-timeout"
            raise UsageError(
                f"{option} is given, and no agent of your own", "name one by --agent or --arm"
            )
        return found | {name: dataclasses.replace(found[name], **changes) for name in foreign}


@dataclass(frozen=True)
class VoiceOptions:
    """The options of the callers' network and of how they sound, as given."""

    link: LinksOption = None
    noise: Annotated[
        list[str] | None,
        typer.Option(
            "--noise",
            metavar="[ARM:]NOISE",
            help="Around the caller: street, crowd, office, forest, keyboard, voices, or a file.",
        ),
    ] = None
    snr: Annotated[
        list[str] | None,
        typer.Option(
            "--snr",
            metavar="[ARM:]DB",
            help="Decibels of the speech above the noise; 20 if absent.",
        ),
    ] = None
    line: Annotated[
        list[str] | None,
        typer.Option("--line", metavar="[ARM:]telephone", help="300 to 3400 Hz, mu-law."),
    ] = None
    microphone: Annotated[
        list[str] | None,
        typer.Option("--microphone", metavar="[ARM:]far", help="Across a room that reverberates."),
    ] = None
    echo: Annotated[
        list[str] | None,
        typer.Option(
            "--echo",
            metavar="[ARM:]DB",
            help="The agent's voice comes back, so many decibels below what the caller hears.",
        ),
    ] = None
    speaker: Annotated[
        list[str] | None,
        typer.Option(
            "--speaker",
            metavar="[ARM:]NAME",
            help="Says every text: jf_alpha, jf_gongitsune, jf_nezumi, jf_tebukuro, jm_kumo, joe.",
        ),
    ] = None

    def of(self, arms: Sequence[str] = ()) -> dict[str, Conditions]:
        """Returns how the callers of each arm sound; under the empty name, of every other.

        Args:
            arms: Names that may stand before a colon.

        Raises:
            UsageError: A value cannot be read.
        """
        from labvoice.speech.conditions import Conditions

        found: dict[str, dict[str, str]] = {"": {}}
        for option in ("noise", "snr", "line", "microphone", "echo", "speaker"):
            for text in getattr(self, option) or ():
                name, colon, rest = text.partition(":")
                named = bool(colon) and name in arms
                of_arm = found.setdefault(name if named else "", {})
                of_arm[option] = rest if named else text
        return {
            arm: Conditions.of(**{**found[""], **given}) for arm, given in found.items() if given
        }


NO_VOICE: Final = VoiceOptions()
NO_AGENTS: Final = AgentOptions()
"""Defaults of parameters that :func:`labvoice.cli.common.command` replaces."""


def _of_arms(option: str, text: str, named: dict[str, str | Target]) -> list[tuple[str, str]]:
    """Returns (arm, value): of the arm that stands before the colon, else of every arm."""
    name, colon, rest = text.partition(":")
    if colon and name in named:
        return [(name, rest)]
    if not named:
        raise UsageError(f"{option} is given, and no agent", "name one by --agent or --arm")
    if colon and "=" in rest and "=" not in name:
        raise UsageError(f"{option}: there is no arm {name!r}", f"one of {', '.join(named)}")
    return [(each, text) for each in named]
