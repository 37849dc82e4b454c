"""`labvoice bench …`: benchmarks; each writes a run file and prints a summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from labvoice.cli.agents import NO_AGENTS, AgentOptions, LinksOption, WireOption, takes_agents
from labvoice.cli.common import (
    ArmsOption,
    JsonOption,
    LlmOption,
    NoRecordingOption,
    OutOption,
    RecordingOption,
    TrialsOption,
    command_line,
    recording_of,
    run_command,
    tell,
    write_json,
)
from labvoice.settings import Llm, Mode, RecordingFormat, load_settings

if TYPE_CHECKING:  # they take a second to import, which `--help` need not wait for
    from labvoice.bench.arms import Arm
    from labvoice.targets.target import Target

bench_app = typer.Typer(help="Benchmarks; each writes a run file.", no_args_is_help=True)


DEFAULT_SILENCES: Final = "0.2,0.3,0.4,0.6"


def _all_arms(arms: str, targets: Mapping[str, Target]) -> list[str | Arm]:
    """Returns built-in arms by name, and those of the user's agents after them."""
    from labvoice.bench.arms import target_arms

    return [*(each for each in arms.split(",") if each.strip()), *target_arms(targets)]


@bench_app.command("connect")
@takes_agents()
def bench_connect(
    trials: TrialsOption = 30,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Warm-up trials first.")] = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    link: LinksOption = None,
    llm: LlmOption = None,
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures connections: from the click to the greeting, stage by stage.

    Arms are ways to dispatch (sequential, concurrent, token, ahead, automatic), ways to run a
    job (process, thread), and a plain livekit-agents worker that takes every job: stock, whose
    models are loaded before a job arrives, and stock-naive, which loads them in the job. With both,
    ratios are stated against the better one.

    Example: labvoice bench connect --agent my_agent/agent.py

    Example: labvoice bench connect --arms stock,sequential,concurrent,token,ahead --trials 30
    """
    from labvoice.bench.arms import CONNECT_ARMS, choose, with_links

    targets = agents.arms()
    chosen = choose(_all_arms(arms, targets), CONNECT_ARMS)  # an unknown name raises early
    with_links(chosen, link or [])
    options: dict[str, Any] = {"trials": trials, "warmup": warmup, "arms": chosen, "out": out}
    options["links"] = link or []
    kept = recording_of(recording, no_recording)
    run_command(_bench("connect", llm, json_path, recording=kept, **options))


@bench_app.command("turns")
@takes_agents()
def bench_turns(
    trials: TrialsOption = 20,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns in each call.")] = 1,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Calls before that.")] = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    link: LinksOption = None,
    wire: WireOption = False,
    llm: LlmOption = None,
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures turns: from the caller's last word to the first word of the reply.

    Arms are ways to use Letta: hybrid, letta, direct (no memory), and hybrid-down: hybrid with
    a stopped Letta; labvoice, the default agent without Letta; and stock and stock-naive, as for
    `labvoice bench connect`.

    Example: labvoice bench turns --arms stock,stock-naive,labvoice --llm paced --trials 20

    Agents of yours stand beside them, each as an arm, or in labvoice.toml.

    Example: labvoice bench turns --arm mine=agent.py --arm before=agent.py@main --arm own=own

    Example: labvoice bench turns --arms hybrid,letta,direct --llm paced --trials 20

    Example: labvoice bench turns --arm good=own --arm bad=own --link bad:delay=80ms,loss=3%
    """
    from labvoice.bench.arms import TURN_ARMS, choose, with_links

    targets = agents.arms()
    chosen = choose(_all_arms(arms, targets), TURN_ARMS)
    modes = frozenset(each.mode for each in chosen if each.mode)
    options: dict[str, Any] = {"trials": trials, "turns": turns, "warmup": warmup}
    options |= {"arms": chosen, "out": out, "links": link or []}
    with_links(chosen, link or [])
    kept = recording_of(recording, no_recording)
    run_command(_bench("turns", llm, json_path, modes=modes, recording=kept, wire=wire, **options))


@bench_app.command("endpointing")
@takes_agents()
def bench_endpointing(
    trials: TrialsOption = 16,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Calls before that.")] = 1,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Endpointing delays to compare, in seconds: a,b,…; 0.2,0.3,0.4,0.6 where "
            "no agent is named.",
        ),
    ] = "",
    agents: AgentOptions = NO_AGENTS,
    llm: LlmOption = None,
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Compares endpointing delays: latency against split turns.

    Example: labvoice bench endpointing --arms 0.2,0.3,0.4,0.6 --llm paced
    """
    from labvoice.bench.arms import choose_endpointing

    targets = agents.arms()
    asked = _all_arms(arms, targets) or DEFAULT_SILENCES.split(",")
    choose_endpointing(asked)
    options: dict[str, Any] = {"trials": trials, "warmup": warmup, "arms": asked}
    options |= {"out": out}
    kept = recording_of(recording, no_recording)
    run_command(_bench("endpointing", llm, json_path, workers=0, recording=kept, **options))


@bench_app.command("interrupt")
@takes_agents()
def bench_interrupt(
    trials: TrialsOption = 5,
    probes: Annotated[
        str,
        typer.Option(
            "--probes",
            help="What the caller does: question, correction, backchannel, cough, laugh, aside, "
            "pause; all when not given.",
        ),
    ] = "",
    ask: Annotated[
        str | None, typer.Option("--ask", help="What the caller asks; it must get a long reply.")
    ] = None,
    at: Annotated[
        float | None,
        typer.Option("--at", min=0, help="Seconds after the reply's onset when a probe begins."),
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Calls before that.")] = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    llm: LlmOption = None,
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures turn-taking: the caller interrupts, says "mm-hm", coughs, pauses.

    How often and how fast the agent yields to an interruption and answers it, how often it goes
    on over a sound that asks for nothing, how often it cuts a turn with a pause in two. Arms are
    settings of the own agent (duration-0.2, duration-1.0, words-2, no-resume, off; labvoice is the
    default), stock and stock-naive, and agents of yours. Exits 1 if an agent says nothing more.

    Example: labvoice bench interrupt --llm paced --arms labvoice,words-2,off --trials 10

    Example: labvoice bench interrupt --agent agent.py --ask "Tell me a long story." --probes cough
    """
    from labvoice.bench.arms import INTERRUPT_ARMS, choose
    from labvoice.speech.probes import check_probes

    targets = agents.arms()
    chosen = choose(_all_arms(arms, targets), INTERRUPT_ARMS)
    check_probes(probes)
    options: dict[str, Any] = {"trials": trials, "warmup": warmup, "probes": probes}
    options |= {"arms": chosen, "out": out}
    options |= {name: value for name, value in (("ask", ask), ("at", at)) if value is not None}
    own = any(each.agent_name is None and each.target is None for each in chosen)
    kept = recording_of(recording, no_recording)
    run_command(_bench("interrupt", llm, json_path, workers=int(own), recording=kept, **options))


def calibrate(
    trials: TrialsOption = 10,
    arms: Annotated[
        str,
        typer.Option("--arms", help="What is on the line: plain, quiet, breath, noise, music."),
    ] = "plain",
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures the instrument's own error, against replies of known delay and dated packets.

    Example: labvoice calibrate --trials 10 --arms plain,quiet,breath,noise,music
    """
    kept = recording_of(recording, no_recording)
    options: dict[str, Any] = {"trials": trials, "arms": arms, "wire": True, "out": out}
    run_command(_bench("calibrate", "paced", json_path, workers=0, recording=kept, **options))


@bench_app.command("burst")
@takes_agents("arm", "greeting_timeout")
def bench_burst(
    rooms: Annotated[int, typer.Option("--rooms", min=1, help="Rooms dispatched at once.")] = 50,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Bursts of each arm.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Warm-up bursts first.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers that share them.")] = 2,
    arms: ArmsOption = "plain,confirmed",
    agents: AgentOptions = NO_AGENTS,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Dispatches to many rooms at once: each must get exactly one agent.

    The arm plain uses the server's CreateDispatch alone, as the baseline.

    Example: labvoice bench burst --rooms 50
    """
    from labvoice.bench.arms import choose
    from labvoice.bench.burst import BURST_ARMS

    choose(arms, BURST_ARMS)
    target = agents.one()
    options: dict[str, Any] = {"rooms": rooms, "trials": trials, "warmup": warmup}
    options |= {"agent": target}
    run_command(_burst(json_path, workers=workers, arms=arms, out=out, **options))


async def _burst(json_path: Path | None, **options: Any) -> int:
    from labvoice.lab import Lab

    async with Lab(progress=tell, workers=0, llm="paced", letta=False, supervise=False) as lab:
        run = await lab.bench.burst(command=command_line(), progress=tell, **options)
    tell(repr(run))
    result = run.to_json()
    write_json(json_path, result)
    # The plain arm is the baseline; the confirmed one decides the exit code.
    confirmed = result.get("arms", {}).get("confirmed", result)
    return 1 if confirmed["failed"] else 0


@bench_app.command("http")
def bench_http(
    rate_hz: Annotated[float, typer.Option("--rate", min=1, help="Dispatches a second.")] = 200,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Duration of the load.")] = 30,
    idle: Annotated[int, typer.Option("--idle", min=0, help="Idle clients meanwhile.")] = 1000,
    restart_s: Annotated[
        float, typer.Option("--restart", min=0, help="Seconds of load around a restart.")
    ] = 10,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures the HTTP service under load, with a stub instead of the lab.

    Example: labvoice bench http --rate 200 --seconds 30
    """
    run_command(_bench_http(rate_hz, seconds, idle, restart_s, out, json_path))


async def _bench_http(
    rate_hz: float,
    seconds: float,
    idle: int,
    restart_s: float,
    out: Path | None,
    json_path: Path | None,
) -> int:
    from labvoice.bench.base import RunOptions
    from labvoice.bench.http import measure_load

    run, facts = await measure_load(
        rate_hz=rate_hz,
        seconds=seconds,
        idle=idle,
        restart_s=restart_s,
        options=RunOptions(out, command_line(), tell),
    )
    tell(repr(run))
    tell(str(facts))
    result = run.to_json()
    write_json(json_path, {**result, "service": vars(facts)})
    return 1 if result["failed"] or not facts.sound else 0


@bench_app.command("leaks")
def bench_leaks(
    calls: Annotated[
        int, typer.Option("--calls", min=1, help="Calls between the two measurements.")
    ] = 100,
    json_path: JsonOption = None,
) -> None:
    """Prints the resources of worker, lab and server before and after many short calls.

    Exits 1 if one of them grew significantly.

    Example: labvoice bench leaks --calls 100
    """
    run_command(_bench_leaks(calls, json_path))


async def _bench_leaks(calls: int, json_path: Path | None) -> int:
    from labvoice.bench.leaks import leaks
    from labvoice.lab import Lab

    async with Lab(progress=tell, llm="paced", letta=False) as lab:
        frame = await leaks(lab, calls, progress=tell)
    tell(frame.round(1).to_string())
    ok = bool(frame["ok"].all())
    write_json(json_path, {"calls": calls, "ok": ok, "figures": frame.T.to_dict()})
    return 0 if ok else 1


@bench_app.command("failover")
@takes_agents("arm")
def bench_failover(
    trials: TrialsOption = 10,
    kill: Annotated[
        str,
        typer.Option("--kill", help="What to kill: job, worker, hang; job, hang with --agent."),
    ] = "",
    workers: Annotated[int, typer.Option("--workers", min=2, help="Workers of the pool.")] = 2,
    agents: AgentOptions = NO_AGENTS,
    llm: LlmOption = None,
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Kills agents during calls and measures the time until a replacement listens.

    Example: labvoice bench failover --trials 10 --kill job,worker,hang

    Example: labvoice bench failover --agent my_agent/agent.py --trials 3
    """
    target = agents.one()
    kept = recording_of(recording, no_recording)
    run_command(_bench_failover(trials, kill, workers, target, llm, kept, out, json_path))


async def _bench_failover(
    trials: int,
    kill: str,
    workers: int,
    agent: Target | None,
    llm: Llm | None,
    recording: RecordingFormat | None,
    out: Path | None,
    json_path: Path | None,
) -> int:
    from labvoice.bench.failover import parse_kills
    from labvoice.lab import Lab

    parse_kills(kill, agent)
    count = workers if agent is None else 0
    async with Lab(progress=tell, llm=llm, workers=count, letta=False, recording=recording) as lab:
        run = await lab.bench.failover(
            trials, kills=kill, agent=agent, out=out, command=command_line(), progress=tell
        )
    tell(repr(run))
    result = run.to_json()
    write_json(json_path, result)
    return 1 if result["failed"] else 0


async def _bench(
    kind: str,
    llm: Llm | None,
    json_path: Path | None,
    *,
    modes: frozenset[Mode] = frozenset(),
    workers: int = 1,
    recording: RecordingFormat | None = None,
    wire: bool = False,
    **options: Any,
) -> int:
    from labvoice.lab import Lab

    targets = [arm.target for arm in options.get("arms", ()) if getattr(arm, "target", None)]
    if targets and len(targets) == len(options["arms"]):
        workers = 0  # each arm has its own
    named = [target for target in targets if target.kind == "named"]
    # If Letta itself is measured, it does not have to wait for the others.
    mode = "letta" if "letta" in modes else None
    settings = load_settings(llm=llm, mode=mode, recording=recording)
    fresh = settings.letta_base_url is None  # an external server is used as it is
    async with Lab(
        progress=tell,
        settings=settings,
        workers=workers,
        letta=bool(modes),
        fresh=fresh,
        supervise=False,
        model=workers > 0 or not targets or len(named) < len(targets),
        wire=wire,
    ) as lab:
        run = await getattr(lab.bench, kind)(command=command_line(), progress=tell, **options)
    tell(repr(run))
    result = run.to_json()
    write_json(json_path, result)
    if kind == "endpointing":  # too short a delay is expected to split turns
        return 1 if result["failed"] == result["n"] else 0
    return 1 if result["failed"] else 0
