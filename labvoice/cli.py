"""The command line: `labvoice COMMAND`; every command says what it does and exits 0, 1 or 2."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labvoice.errors import LabvoiceError, SettingsError, UsageError
from labvoice.settings import Llm, Mode, load_settings

if TYPE_CHECKING:  # they take a second to import, which `--help` need not wait for
    from labvoice.bench.run import Run
    from labvoice.dispatch import Strategy
    from labvoice.lab import Lab

app = typer.Typer(
    help="Launch, dispatch, prove and measure LiveKit voice agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Benchmarks; each writes a run file.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
_DEMO_AGENT = "labvoice demo"
console = Console(highlight=False, soft_wrap=True)

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the machine-readable result there too.")
]
LlmOption = Annotated[
    Llm | None, typer.Option("--llm", help="Language model behind the agent (LABVOICE_LLM).")
]
TrialsOption = Annotated[int, typer.Option("--trials", min=1, help="How many trials count.")]
ArmsOption = Annotated[
    str, typer.Option("--arms", help="Configurations to measure side by side: a,b,…")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="The run file to write.")]
AgentNameOption = Annotated[
    str | None, typer.Option("--agent-name", help="Name of the agent (LABVOICE_AGENT_NAME).")
]
LettaOption = Annotated[
    bool, typer.Option("--letta/--no-letta", help="With memory by Letta, or without.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="An empty Letta database, deleted at the end.")
]
LettaAgentOption = Annotated[
    str | None, typer.Option("--letta-agent", help="Letta agent by id or name.")
]


def _say(line: str) -> None:
    console.print(line, markup=False)


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Runs the work; SIGTERM and SIGINT cancel it, so that everything it started is stopped."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    got: list[int] = []

    def stop(number: int) -> None:
        got.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        _say("stopped")
        return 128 + got[0]


def _run(work: Coroutine[Any, Any, int]) -> None:
    raise typer.Exit(asyncio.run(_until_signal(work)))


def _write_json(path: Path | None, result: dict[str, Any]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _say(f"wrote {path}")


def _command() -> str:
    return shlex.join(["labvoice", *sys.argv[1:]])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all that is written.")] = Path(
        "runs/demo"
    ),
    trials: TrialsOption = 5,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls of the turn benchmark.")] = 2,
    llm: LlmOption = None,
    letta: LettaOption = True,
    fresh: FreshOption = False,
    json_path: JsonOption = None,
) -> None:
    """The main job, no questions: stack up, connections and turns measured, report.html.

    Example: labvoice demo --trials 3
    """
    _run(_demo(out, trials, calls, llm, letta, fresh, json_path))


async def _demo(
    out: Path,
    trials: int,
    calls: int,
    llm: Llm | None,
    letta: bool,
    fresh: bool,
    json_path: Path | None,
) -> int:
    from labvoice.lab import Lab
    from labvoice.report.html import write_report

    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    async with Lab(progress=_say, llm=llm, letta=letta, fresh=fresh) as lab:
        _say(repr(lab))
        connect = await lab.bench.connect(
            trials, out=out / f"{stamp}-connect.jsonl", command=_command(), progress=_say
        )
        turns = await lab.bench.turns(
            calls, turns=2, out=out / f"{stamp}-turns.jsonl", command=_command(), progress=_say
        )
        runs = [connect, turns]
        if letta:
            runs.append(await _tell_a_fact(lab, out / f"{stamp}-memory.jsonl"))
        sizes = {part.name: part.memory for part in lab.parts() if part.memory}
    for run in runs:
        _say(repr(run))
    _say("memory in use: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    report = await asyncio.to_thread(write_report, runs, out / "report.html")
    results = {run.header.kind: run.to_json() for run in runs}
    _write_json(json_path or out / "summary.json", {**results, "setup_s": lab.setup_s})
    _say(f"report: {report.resolve()}")
    return 1 if any(result["failed"] for result in results.values()) else 0


async def _tell_a_fact(lab: Lab, out: Path) -> Run:
    """Tells the agent a fact by voice, and shows it in Letta's memory block."""
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
    block = (await lab.letta.blocks(agent))["human"]
    _say(f"memory: told {turn.said!r}; {_DEMO_AGENT!r} in Letta now knows: {block!r}")
    return lab.bench.record(call, out)


@bench_app.command("connect")
def bench_connect(
    trials: TrialsOption = 30,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Trials before that.")] = 1,
    arms: ArmsOption = "",
    llm: LlmOption = None,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures connections: from the click to the greeting, stage by stage.

    Arms are ways to dispatch (sequential, concurrent, token, ahead, automatic), ways to run a
    job (process, thread), and stock: a plain livekit-agents worker with its defaults.

    Example: labvoice bench connect --arms stock,sequential,concurrent,token,ahead --trials 30
    """
    from labvoice.bench.arms import CONNECT_ARMS, choose

    choose(arms, CONNECT_ARMS)  # a wrong name is told before anything is started
    _run(_bench("connect", llm, json_path, trials=trials, warmup=warmup, arms=arms, out=out))


@bench_app.command("turns")
def bench_turns(
    trials: TrialsOption = 20,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns in each call.")] = 1,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Calls before that.")] = 1,
    arms: ArmsOption = "",
    llm: LlmOption = None,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures turns: from the caller's last word to the first word of the reply.

    Arms are ways to use Letta: hybrid, letta, direct (no memory), and hybrid-down: hybrid with
    a Letta that is not there.

    Example: labvoice bench turns --arms hybrid,letta,direct --llm paced --trials 20
    """
    from labvoice.bench.arms import TURN_ARMS, choose

    modes = frozenset(arm.mode for arm in choose(arms, TURN_ARMS) if arm.mode)
    options = {"trials": trials, "turns": turns, "warmup": warmup, "arms": arms, "out": out}
    _run(_bench("turns", llm, json_path, modes=modes, **options))


@bench_app.command("burst")
def bench_burst(
    rooms: Annotated[int, typer.Option("--rooms", min=1, help="Rooms that ask at once.")] = 50,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers that share them.")] = 2,
    arms: ArmsOption = "plain,confirmed",
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Dispatches to many rooms at once: each must get one agent, and none two.

    The arm plain is the server's CreateDispatch alone; its losses are what is compared with.

    Example: labvoice bench burst --rooms 50
    """
    from labvoice.bench.arms import choose
    from labvoice.bench.burst import BURST_ARMS

    choose(arms, BURST_ARMS)
    _run(_burst(json_path, rooms=rooms, workers=workers, arms=arms, out=out))


async def _burst(json_path: Path | None, **options: Any) -> int:
    from labvoice.lab import Lab

    async with Lab(progress=_say, workers=0, llm="paced", letta=False, supervise=False) as lab:
        run = await lab.bench.burst(command=_command(), progress=_say, **options)
    _say(repr(run))
    result = run.to_json()
    _write_json(json_path, result)
    # The plain arm is there to lose; it is the confirmed one that is judged.
    confirmed = result.get("arms", {}).get("confirmed", result)
    return 1 if confirmed["failed"] else 0


@bench_app.command("http")
def bench_http(
    rate_hz: Annotated[float, typer.Option("--rate", min=1, help="Dispatches a second.")] = 200,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="For how long.")] = 30,
    idle: Annotated[int, typer.Option("--idle", min=0, help="Silent clients meanwhile.")] = 1000,
    restart_s: Annotated[
        float, typer.Option("--restart", min=0, help="Seconds of load around a restart.")
    ] = 10,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures the HTTP service's own part under load, with a stub in the lab's place.

    Example: labvoice bench http --rate 200 --seconds 30
    """
    _run(_bench_http(rate_hz, seconds, idle, restart_s, out, json_path))


async def _bench_http(
    rate_hz: float,
    seconds: float,
    idle: int,
    restart_s: float,
    out: Path | None,
    json_path: Path | None,
) -> int:
    from labvoice.web.load import measure_load

    run, facts = await measure_load(
        rate_hz=rate_hz,
        seconds=seconds,
        idle=idle,
        restart_s=restart_s,
        out=out or Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-http.jsonl",
        command=_command(),
        progress=_say,
    )
    _say(repr(run))
    _say(str(facts))
    result = run.to_json()
    _write_json(json_path, {**result, "service": vars(facts)})
    return 1 if result["failed"] or facts.lost or facts.doubled else 0


@bench_app.command("leaks")
def bench_leaks(
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls between the looks.")] = 100,
    json_path: JsonOption = None,
) -> None:
    """Prints what worker, lab and server hold before and after many calls.

    Example: labvoice bench leaks --calls 100
    """
    _run(_bench_leaks(calls, json_path))


async def _bench_leaks(calls: int, json_path: Path | None) -> int:
    from labvoice.bench.leaks import leaks
    from labvoice.lab import Lab

    async with Lab(progress=_say, llm="paced", letta=False) as lab:
        frame = await leaks(lab, calls, progress=_say)
    _say(frame.round(1).to_string())
    _write_json(json_path, {"calls": calls, "figures": frame.T.to_dict()})
    return 0


@bench_app.command("failover")
def bench_failover(
    trials: TrialsOption = 10,
    kill: Annotated[
        str, typer.Option("--kill", help="Kinds of death: job, worker, hang.")
    ] = "job,worker,hang",
    workers: Annotated[int, typer.Option("--workers", min=2, help="Workers of the pool.")] = 2,
    llm: LlmOption = None,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Kills agents in their calls and measures how soon another one listens.

    Example: labvoice bench failover --trials 10 --kill job,worker,hang
    """
    _run(_bench_failover(trials, kill, workers, llm, out, json_path))


async def _bench_failover(
    trials: int, kill: str, workers: int, llm: Llm | None, out: Path | None, json_path: Path | None
) -> int:
    from labvoice.bench.failover import parse_kills
    from labvoice.lab import Lab

    parse_kills(kill)
    async with Lab(progress=_say, llm=llm, workers=workers, letta=False) as lab:
        run = await lab.bench.failover(
            trials, kills=kill, out=out, command=_command(), progress=_say
        )
    _say(repr(run))
    result = run.to_json()
    _write_json(json_path, result)
    return 1 if result["failed"] else 0


async def _bench(
    kind: str,
    llm: Llm | None,
    json_path: Path | None,
    *,
    modes: frozenset[Mode] = frozenset(),
    **options: Any,
) -> int:
    from labvoice.lab import Lab

    # Where Letta is measured as the one who answers, it is not made to wait for the others.
    settings = load_settings(llm=llm, **({"mode": "letta"} if "letta" in modes else {}))
    async with Lab(
        progress=_say, settings=settings, letta=bool(modes), fresh=True, supervise=False
    ) as lab:
        measure = lab.bench.connect if kind == "connect" else lab.bench.turns
        run = await measure(command=_command(), progress=_say, **options)
    _say(repr(run))
    result = run.to_json()
    _write_json(json_path, result)
    return 1 if result["failed"] else 0


@app.command()
def call(
    say: Annotated[list[str] | None, typer.Option("--say", help="A text to speak.")] = None,
    wav: Annotated[list[Path] | None, typer.Option("--wav", help="A WAV file to speak.")] = None,
    room: Annotated[str | None, typer.Option("--room", help="Room; a fresh one if absent.")] = None,
    agent_name: AgentNameOption = None,
    letta_agent: LettaAgentOption = None,
    strategy: Annotated[
        str,
        typer.Option(help="When to dispatch: sequential, concurrent, token, ahead or automatic."),
    ] = "sequential",
    llm: LlmOption = None,
    json_path: JsonOption = None,
) -> None:
    """One simulated caller: joins, speaks, listens, and prints every mark.

    Example: labvoice call --say "What is the capital of France?"
    """
    from labvoice.dispatch import check_strategy

    _run(
        _call(
            say or [],
            wav or [],
            room,
            agent_name,
            letta_agent,
            check_strategy(strategy),
            llm,
            json_path,
        )
    )


async def _call(
    say: list[str],
    wav: list[Path],
    room: str | None,
    agent_name: str | None,
    letta_agent: str | None,
    strategy: Strategy,
    llm: Llm | None,
    json_path: Path | None,
) -> int:
    from labvoice.caller.voice import load_wav
    from labvoice.lab import Lab

    recordings = [load_wav(path) for path in wav]
    async with Lab(progress=_say, llm=llm, letta=letta_agent is not None, supervise=False) as lab:
        spoken = [await lab.utterance(text) for text in say] + recordings
        if letta_agent is not None:
            await lab.letta_server.until_up()
        if strategy == "automatic":
            await lab.add_workers(agent_name="")
        call = await lab.call(
            room, agent_name=agent_name, letta_agent=letta_agent, strategy=strategy
        )
        if call.notice:
            _say(f"notice: {call.notice}")
        try:
            _say(f"agent: {await call.hear_greeting()}")
            for utterance in spoken:
                await call.say(utterance)
                turn = await call.hear()
                _say(f"said: {turn.said}\nunderstood: {turn.transcript}\nagent: {turn.reply}")
        finally:
            await lab.end_call(call)
    marks = Table("mark", "ms since click")
    for name, at_s in sorted(call.marks.items(), key=lambda item: item[1]):
        marks.add_row(name, f"{(at_s - call.marks['click']) * 1000:.0f}")
    console.print(marks)
    turns = [
        {
            "said": turn.said,
            "transcript": turn.transcript,
            "reply": turn.reply,
            "voice_to_voice_s": turn.voice_to_voice_s,
            **turn.metrics,
        }
        for turn in call.turns
    ]
    for turn_facts in turns:
        _say(
            ", ".join(
                f"{name} {value * 1000:.0f} ms"
                for name, value in turn_facts.items()
                if isinstance(value, float)
            )
        )
    _write_json(json_path, {"room": call.room_name, "marks": call.marks, "turns": turns})
    return 0


@app.command()
def dispatch(
    room: Annotated[str, typer.Argument(help="Room to put the agent into.")],
    agent_name: AgentNameOption = None,
    letta_agent: LettaAgentOption = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 10.0,
    json_path: JsonOption = None,
) -> None:
    """Puts exactly one agent into a room of a running server, and proves that it joined.

    Example: labvoice dispatch my-room --agent-name letta-voice-agent
    """
    _run(_dispatch(room, agent_name, letta_agent, timeout_s, json_path))


async def _dispatch(
    room: str,
    agent_name: str | None,
    letta_agent: str | None,
    timeout_s: float,
    json_path: Path | None,
) -> int:
    from labvoice.dispatch import Dispatcher
    from labvoice.job import JobMetadata
    from labvoice.stack.letta_api import LettaApi

    settings = load_settings()
    if not settings.livekit_url:
        raise SettingsError(
            "no LiveKit server is named",
            "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
        )
    assert settings.livekit_api_key
    assert settings.livekit_api_secret
    if letta_agent and settings.letta_base_url:
        async with LettaApi(settings.letta_base_url, settings.letta_api_key) as letta:
            letta_agent = await letta.resolve(letta_agent)
    async with Dispatcher(
        settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret
    ) as dispatcher:
        done = await dispatcher.dispatch(
            room,
            agent_name or settings.agent_name,
            metadata=JobMetadata(letta_agent_id=letta_agent) if letta_agent else None,
            timeout_s=timeout_s,
        )
    result = {**vars(done), "outcome": "ok", "success": True}
    for name, value in result.items():
        _say(f"{name}: {value}")
    _write_json(json_path, result)
    return 0


@app.command()
def up(
    workers: Annotated[int, typer.Option("--workers", min=0, help="How many workers.")] = 1,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="HTTP port.")] = 9000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let --host be another than loopback.")
    ] = False,
    llm: LlmOption = None,
    letta: LettaOption = True,
    fresh: FreshOption = False,
) -> None:
    """The stack and the HTTP service, in the foreground; Ctrl-C ends all of it.

    Example: labvoice up --workers 2 --port 9000
    """
    _run(_up(workers, port, host, allow_remote, llm, letta, fresh))


async def _up(
    workers: int,
    port: int,
    host: str,
    allow_remote: bool,
    llm: Llm | None,
    letta: bool,
    fresh: bool,
) -> int:
    from labvoice.lab import Lab
    from labvoice.web.up import prepare

    service = prepare(host, port, allow_remote=allow_remote)
    async with Lab(
        workers=workers,
        letta=letta,
        fresh=fresh,
        progress=_say,
        webhook_url=service.webhook_url,
        llm=llm,
    ) as lab:
        await service.serve(lab, _say)
    return 1


@app.command()
def doctor(
    agent_name: AgentNameOption = None, llm: LlmOption = None, json_path: JsonOption = None
) -> None:
    """Is everything there, and does the agent really join? Prints ✓ or ✗ with a hint for each.

    With LIVEKIT_URL set it looks at that server and at the workers that are registered there;
    else it brings up a stack of its own. Exits 1 when anything is not as it should be.

    Example: labvoice doctor --json doctor.json
    """
    _run(_doctor(agent_name, llm, json_path))


async def _doctor(agent_name: str | None, llm: Llm | None, json_path: Path | None) -> int:
    from labvoice.doctor import examine, to_json

    overrides: dict[str, Any] = {"llm": llm}
    if agent_name:
        overrides["agent_name"] = agent_name
    checks = await examine(load_settings(**overrides), lambda check: _say(str(check)))
    result = to_json(checks)
    _write_json(json_path, result)
    return 0 if result["ok"] else 1


@app.command()
def worker(agent_name: AgentNameOption = None, llm: LlmOption = None) -> None:
    """One worker, anywhere, against LIVEKIT_URL; Ctrl-C lets its calls end, twice does not.

    Example: LIVEKIT_URL=ws://… labvoice worker --agent-name letta-voice-agent
    """
    _run(_worker(agent_name, llm))


async def _worker(agent_name: str | None, llm: Llm | None) -> int:
    from labvoice.lab import Lab

    overrides: dict[str, Any] = {"llm": llm}
    if agent_name:
        overrides["agent_name"] = agent_name
    settings = load_settings(**overrides)
    if not settings.livekit_url:
        raise SettingsError(
            "a worker needs a LiveKit server to register with",
            "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
        )
    async with Lab(
        progress=_say, settings=settings, letta=bool(settings.letta_base_url), supervise=False
    ) as lab:
        _say(repr(lab))
        try:
            await lab.pool.ended()
        except asyncio.CancelledError:
            _say("no more jobs are taken; what runs may end, a second signal ends it at once")
            await lab.pool.drain()
            raise
        _say(f"the worker ended for good\n{lab.pool.events.to_string()}")
    return 1


@app.command()
def lab(
    port: Annotated[int, typer.Option("--port", help="JupyterLab's port.")] = 8888,
) -> None:
    """Opens JupyterLab on the notebooks.

    Example: labvoice lab
    """
    notebooks = Path("notebooks")
    if not notebooks.is_dir():
        raise UsageError(
            "there is no folder `notebooks` here", "run it in the checkout of labvoice"
        )
    os.execvp(  # noqa: S606  # JupyterLab takes this process over, signals included
        sys.executable,
        [sys.executable, "-m", "jupyterlab", f"--port={port}", "--notebook-dir", str(notebooks)],
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run files.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Write the pictures there as PNG too.")
    ] = None,
) -> None:
    """Writes a single-file HTML report of recorded runs.

    Example: labvoice report runs/turns.jsonl --out report.html
    """
    from labvoice.bench.run import Run
    from labvoice.report.html import write_pictures, write_report

    loaded = [Run.load(path) for path in runs]
    _say(f"report: {write_report(loaded, out).resolve()}")
    if pictures is not None:
        for run in loaded:
            for path in write_pictures(run, pictures):
                _say(f"picture: {path}")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Run file to compare with.")],
    new: Annotated[Path, typer.Argument(help="Run file to judge.")],
    max_regression: Annotated[
        float, typer.Option("--max-regression", min=0, help="Slowdown of p50 that still passes.")
    ] = 0.10,
    allow_different_hosts: Annotated[
        bool, typer.Option("--allow-different-hosts", help="Compare runs of different machines.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Compares two runs; exits 1 when a headline stage became slower than allowed.

    Example: labvoice compare base.jsonl new.jsonl --max-regression 0.10
    """
    from labvoice.bench.compare import compare as compare_runs
    from labvoice.bench.run import Run

    comparison = compare_runs(
        Run.load(base),
        Run.load(new),
        max_regression,
        allow_different_hosts=allow_different_hosts,
    )
    _say(repr(comparison))
    _write_json(json_path, comparison.to_json())
    raise typer.Exit(0 if comparison.passed else 1)


def main() -> None:
    """Runs the command line; an error of ours is printed, not traced."""
    try:
        app()
    except LabvoiceError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
