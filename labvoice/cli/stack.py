"""Commands that start a stack: demo, up, worker, doctor, lab."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labvoice.cli.agents import NO_AGENTS, AgentOptions
from labvoice.cli.common import (
    AgentNameOption,
    FreshOption,
    JsonOption,
    LettaOption,
    LlmOption,
    PortOption,
    TrialsOption,
    WarmupOption,
    command,
    command_line,
    send_traces,
    tell,
    write_json,
)
from labvoice.errors import LabvoiceError, SettingsError, UsageError

if TYPE_CHECKING:  # they take a second to import, which `--help` need not wait for
    from labvoice.lab import Lab
    from labvoice.runs.run import Run

_DEMO_AGENT = "labvoice demo"


@command()
async def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("runs/demo"),
    trials: TrialsOption = 5,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls of the turn benchmark.")] = 2,
    warmup: WarmupOption = 1,
    llm: LlmOption = None,
    letta: LettaOption = True,
    fresh: FreshOption = False,
    json_path: JsonOption = None,
) -> int:
    """Starts the stack, measures connections and turns, and writes report.html.

    Example: labvoice demo --trials 3
    """
    import asyncio

    from labvoice.bench.base import RunKeywords
    from labvoice.lab import Lab
    from labvoice.report.html import write_report

    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    async with Lab(progress=tell, llm=llm, letta=letta, fresh=fresh) as lab:
        tell(repr(lab))
        options = RunKeywords(command=command_line(), progress=tell, warmup=warmup)
        options["out"] = out / f"{stamp}-connect.jsonl"
        connect = await lab.bench.connect(trials, **options)
        options["out"] = out / f"{stamp}-turns.jsonl"
        turns = await lab.bench.turns(calls, turns=2, **options)
        runs = [connect, turns]
        failed = None
        if letta:
            try:
                runs.append(await _tell_a_fact(lab, out / f"{stamp}-memory.jsonl"))
            except LabvoiceError as error:
                failed = error  # report what was measured
        sizes = {part.name: part.memory for part in lab.parts() if part.memory}
    for run in runs:
        tell(repr(run))
        await send_traces(run)
    tell("memory usage: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    report = await asyncio.to_thread(write_report, runs, out / "report.html")
    results = {run.header.kind: run.to_json() for run in runs}
    write_json(json_path or out / "summary.json", {**results, "setup_s": lab.setup_s})
    tell(f"report: {report.resolve()}")
    if failed is not None:
        tell(f"memory: not shown: {failed}")
        return 1
    return 1 if any(result["failed"] for result in results.values()) else 0


async def _tell_a_fact(lab: Lab, out: Path) -> Run:
    """Tells the agent a fact by voice, and prints Letta's memory block."""
    await lab.letta_server.until_up()
    agent = await lab.letta.ensure(_DEMO_AGENT)
    call = await lab.call(letta_agent=agent)
    try:
        await call.hear_greeting()
        await call.say(await lab.utterance("My dog is called Rex."))
        turn = await call.hear()
        await call.until_synced()
    finally:
        await lab.end_call(call)
    block = (await lab.letta.blocks(agent))["human"].strip()
    tell(f"memory: told {turn.said!r}; {_DEMO_AGENT!r} in Letta now knows: {block!r}")
    return lab.bench.record(call, out)


@command("arm", "metadata", "greeting_timeout")
async def up(
    workers: Annotated[int, typer.Option("--workers", min=0, help="Number of workers.")] = 1,
    port: PortOption = 9000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow a --host other than loopback.")
    ] = False,
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, help="LiveKit servers; several share a Redis.")
    ] = 1,
    llm: LlmOption = None,
    letta: LettaOption = True,
    fresh: FreshOption = False,
    agents: AgentOptions = NO_AGENTS,
) -> int:
    """Runs the stack and the HTTP service in the foreground; Ctrl-C stops all of it.

    With --agent, that agent is dispatched in place of labvoice's own.

    Example: labvoice up --workers 2 --port 9000

    Example: labvoice up --nodes 2 --workers 2

    Example: labvoice up --agent my_agent/agent.py
    """
    target = agents.one()
    if target is not None and target.kind == "bot":
        raise UsageError(
            "the HTTP service dispatches agents, and nobody dispatches a bot",
            "`labvoice try` and `labvoice bench` start a bot for each call",
        )
    from labvoice.lab import Lab
    from labvoice.web.up import prepare

    service = prepare(host, port, allow_remote=allow_remote)
    with service.sock:  # held while the stack starts, and closed if it fails
        async with Lab(
            workers=workers if target is None else 0,
            letta=letta and target is None,
            fresh=fresh,
            progress=tell,
            webhook_url=service.webhook_url,
            nodes=nodes,
            llm=llm,
            model=target is None or target.kind != "named",
        ) as lab:
            if target is not None:
                agent = await lab.add_target(target)
                tell(f"agent: {agent}")
                lab.settings = lab.settings.model_copy(update={"agent_name": agent.name})
            await service.serve(lab, tell)
    return 1


@command("arm", "metadata", "greeting_timeout")
async def doctor(
    agent_name: AgentNameOption = None,
    llm: LlmOption = None,
    port: PortOption = 9000,
    agents: AgentOptions = NO_AGENTS,
    json_path: JsonOption = None,
) -> int:
    """Checks every part and dispatches an agent. Prints ✓ or ✗ with a hint for each check.

    With LIVEKIT_URL set it checks that server and its registered workers; otherwise it starts its
    own stack. Exits 1 if a check fails.

    With --agent, that agent is started and has to join.

    Example: labvoice doctor --json doctor.json

    Example: labvoice doctor --agent my_agent/agent.py
    """
    target = agents.one()
    from labvoice.dispatch.service_evidence import service_evidence
    from labvoice.health.doctor import examine, to_json
    from labvoice.settings import load_settings, read_settings
    from labvoice.web.settings import WebSettings

    settings = load_settings(llm=llm, agent_name=agent_name or None)
    api_key = read_settings(WebSettings).api_key
    checks = await examine(
        settings,
        lambda check: tell(str(check)),
        port=port,
        evidence=service_evidence(settings.livekit_url, api_key, port)
        if settings.livekit_url
        else None,
        target=target,
    )
    result = to_json(checks)
    write_json(json_path, result)
    return 0 if result["ok"] else 1


@command()
async def worker(agent_name: AgentNameOption = None, llm: LlmOption = None) -> int:
    """Runs one worker against LIVEKIT_URL; Ctrl-C drains its calls, twice stops at once.

    Example: LIVEKIT_URL=ws://… labvoice worker --agent-name letta-voice-agent
    """
    import asyncio

    from labvoice.lab import Lab
    from labvoice.settings import load_settings

    settings = load_settings(llm=llm, agent_name=agent_name or None)
    if not settings.livekit_url:
        raise SettingsError(
            "a worker needs a LiveKit server to register with",
            "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
        )
    async with Lab(
        progress=tell, settings=settings, letta=bool(settings.letta_base_url), supervise=False
    ) as lab:
        tell(repr(lab))
        try:
            await lab.pool.ended()
        except asyncio.CancelledError:
            tell("draining: no new jobs; running calls may end, a second signal stops them at once")
            await lab.pool.drain()
            raise
        tell(f"the worker ended for good\n{lab.pool.events.to_string()}")
    return 1


def own_notebooks(folder: Path) -> Path:
    """Returns the notebooks' folder; creates it with copies of labvoice's notebooks if missing.

    Raises:
        UsageError: The folder cannot be created.
    """
    if folder.is_dir():
        return folder
    package = Path(__file__).parents[1]
    # In a wheel they are inside the package, in a checkout beside it.
    packed = next(p for p in (package / "notebooks", package.parent / "notebooks") if p.is_dir())
    try:
        shutil.copytree(packed, folder, ignore=shutil.ignore_patterns("*.py", ".*"))
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be created: {error.strerror}",
            "run it in a writable folder",
        ) from None
    tell(f"the notebooks were copied to {folder.resolve()}; you may change them")
    return folder


def lab(
    port: Annotated[int, typer.Option("--port", help="JupyterLab's port.")] = 8888,
) -> None:
    """Opens JupyterLab on the folder `notebooks`; creates it from labvoice's notebooks if missing.

    Example: labvoice lab
    """
    from labvoice.settings import ENV_FILE, env_file

    notebooks = own_notebooks(Path("notebooks"))
    if (file := env_file()) is not None and file.is_file():
        os.environ[ENV_FILE] = str(file.absolute())  # kernels run in the folder of their notebook
    os.execvp(  # noqa: S606  # JupyterLab takes this process over, signals included
        sys.executable,
        [
            *(sys.executable, "-P", "-m", "jupyterlab"),
            *(f"--port={port}", "--notebook-dir", str(notebooks)),
        ],
    )
