"""AGENT on the command line: `--agent`, `--arm`, `--env` and their like, for every command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labvoice.cli.common import AGENT_HELP
from labvoice.errors import UsageError

if TYPE_CHECKING:  # it takes a second to import, which `--help` need not wait for
    from labvoice.targets.target import Target

AgentOption = Annotated[str | None, typer.Option("--agent", metavar="AGENT", help=AGENT_HELP)]
ArmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="NAME=AGENT",
        help="An agent to measure beside others; NAME alone is an arm of labvoice.toml.",
    ),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="[ARM:]KEY=VALUE",
        help="Set for the agent, or for that of one arm; labvoice's own takes its settings so.",
    ),
]
PythonOption = Annotated[
    list[str] | None,
    typer.Option(
        "--python",
        metavar="[ARM:]PATH",
        help="Interpreter of the agent's environment; that of .venv beside the script if absent.",
    ),
]
MetadataOption = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        metavar="TEXT|@FILE",
        help="Sent to an agent of your own as its job's metadata, unchanged.",
    ),
]
GreetingOption = Annotated[
    float | None,
    typer.Option(
        "--greeting-timeout",
        min=0,
        help="Seconds to find out, once, whether an agent of your own greets; 8 if absent.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Read agents and arms there; labvoice.toml here if absent."),
]


def read_agent(
    agent: str | None,
    env: Sequence[str] | None,
    python: Sequence[str] | None,
    metadata: str | None,
    config: Path | None,
    *,
    greeting_timeout_s: float | None = None,
) -> Target | None:
    """Returns the one agent that a command names, or that `labvoice.toml` does; None for none.

    Args:
        agent: `--agent`, as given.
        env: As for :func:`read_arms`.
        python: As for :func:`read_arms`.
        metadata: As for :func:`read_arms`.
        config: As for :func:`read_arms`.
        greeting_timeout_s: As for :func:`read_arms`.

    Raises:
        UsageError: Something cannot be meant so.
    """
    from labvoice.targets.config import read_config

    named = agent if agent is not None else read_config(config).agent
    if named is None and not (env or python or metadata or greeting_timeout_s is not None):
        return None
    agents = {} if named is None else {"agent": named}
    return _with_options(agents, env or (), python or (), metadata, greeting_timeout_s).get("agent")


def read_arms(
    arms: Sequence[str] | None,
    env: Sequence[str] | None,
    python: Sequence[str] | None,
    metadata: str | None,
    config: Path | None,
    *,
    agent: str | None = None,
    greeting_timeout_s: float | None = None,
) -> dict[str, Target]:
    """Returns the agents that a command names, by the names of their arms.

    Where neither `--agent` nor `--arm` is given they are the arms of `labvoice.toml`, else its
    agent, and none where there is no such file.

    Args:
        arms: `--arm`, as given.
        env: `--env`, as given.
        python: `--python`, as given.
        metadata: `--metadata`, as given.
        config: `--config`, as given.
        agent: `--agent`, as given.
        greeting_timeout_s: `--greeting-timeout`, as given.

    Raises:
        UsageError: Something cannot be meant so.
    """
    from labvoice.targets.config import read_config

    if agent is not None and arms:
        raise UsageError("both --agent and --arm are given", "name every agent by --arm")
    file = read_config(config)
    named: dict[str, str | Target] = {}
    for text in arms or ():
        name, equals, value = text.partition("=")
        if name in named:
            raise UsageError(f"the arm {name} is named twice", "name each arm once")
        if not equals and name not in file.arms:
            known = f"; labvoice.toml has {', '.join(file.arms)}" if file.arms else ""
            raise UsageError(f"--arm {name!r} names no agent{known}", "--arm NAME=AGENT")
        named[name] = value if equals else file.arms[name]
    if agent is not None:
        named["agent"] = agent
    if not named:
        named |= file.arms or ({"agent": file.agent} if file.agent is not None else {})
    return _with_options(named, env or (), python or (), metadata, greeting_timeout_s)


def _with_options(
    named: dict[str, str | Target],
    env: Sequence[str],
    python: Sequence[str],
    metadata: str | None,
    greeting_timeout_s: float | None,
) -> dict[str, Target]:
    from labvoice.targets.config import read_text
    from labvoice.targets.target import BUILT_IN, Target

    variables: dict[str, dict[str, str]] = {name: {} for name in named}
    for each in env:
        for name, text in _of_arms("--env", each, named):
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                raise UsageError(f"--env: {key!r} is no KEY=VALUE", "such as --env STT=base")
            variables[name][key] = value
    interpreters: dict[str, Path] = {}
    for each in python:
        for name, text in _of_arms("--python", each, named):
            interpreters[name] = Path(text)
    found: dict[str, Target] = {}
    for name, given in named.items():
        target = Target.parse(given) if isinstance(given, str) else given
        found[name] = target.changed(python=interpreters.get(name), env=variables[name])
    changes: dict[str, Any] = {}
    if metadata and (text := read_text(metadata)):
        changes["metadata"] = text
    if greeting_timeout_s is not None:
        changes["greeting_timeout_s"] = greeting_timeout_s
    foreign = [name for name, target in found.items() if target.kind not in BUILT_IN]
    if changes and not foreign:
        option = "--metadata" if "metadata" in changes else "--greeting-timeout"
        raise UsageError(
            f"{option} is given, and no agent of your own", "name one by --agent or --arm"
        )
    return found | {name: dataclasses.replace(found[name], **changes) for name in foreign}


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
