"""`labvoice bench …`: benchmarks; each writes a run file and prints a summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labvoice.cli.agents import (
    NO_AGENTS,
    NO_VOICE,
    AgentOptions,
    LinksOption,
    VoiceOptions,
    WireOption,
)
from labvoice.cli.common import (
    CALL_OPTIONS,
    ArmsOption,
    CallOptions,
    JsonOption,
    OutOption,
    TrialsOption,
    WarmupOption,
    command,
    command_line,
    send_traces,
    tell,
    write_json,
)

if TYPE_CHECKING:  # they take a second to import, which `--help` need not wait for
    from labvoice.bench.arms import Arm
    from labvoice.runs.run import Run

bench_app = typer.Typer(help="Benchmarks; each writes a run file.", no_args_is_help=True)


def _all_arms(arms: str, agents: AgentOptions) -> list[str | Arm]:
    """Returns built-in arms by name, and those of the user's agents after them."""
    from labvoice.bench.arms import target_arms

    return [*(each for each in arms.split(",") if each.strip()), *target_arms(agents.arms())]


def _surroundings(arms: Sequence[Arm], voice: VoiceOptions) -> dict[str, Any]:
    """Returns the links of the callers and how they sound; a wrong one raises early."""
    from labvoice.bench.arms import with_conditions, with_links

    links, conditions = voice.link or [], voice.of([arm.name for arm in arms])
    if arms:
        with_conditions(with_links(arms, links), conditions)
    return {"links": links, "conditions": conditions}


def _chosen(
    arms: str, agents: AgentOptions, known: Sequence[Arm], voice: VoiceOptions
) -> dict[str, Any]:
    """Returns the arms that are meant, with :func:`_surroundings`."""
    from labvoice.bench.arms import choose

    chosen = choose(_all_arms(arms, agents), known)
    return {"arms": chosen, **_surroundings(chosen, voice)}


@bench_app.command("connect")
@command()
async def bench_connect(
    trials: TrialsOption = 30,
    warmup: WarmupOption = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Measures connections: from the click to the greeting, stage by stage.

    Arms are ways to dispatch (sequential, concurrent, token, ahead, automatic), ways to run a
    job (process, thread), and a plain livekit-agents worker that takes every job: stock, whose
    models are loaded before a job arrives, and stock-naive, which loads them in the job. With both,
    ratios are stated against the better one.

    Example: labvoice bench connect --agent my_agent/agent.py

    Example: labvoice bench connect --arms stock,sequential,concurrent,token,ahead --trials 30
    """
    from labvoice.bench.arms import CONNECT_ARMS

    chosen = _chosen(arms, agents, CONNECT_ARMS, voice)
    return await _bench("connect", options, trials=trials, warmup=warmup, **chosen)


@bench_app.command("turns")
@command()
async def bench_turns(
    trials: TrialsOption = 20,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns in each call.")] = 1,
    warmup: WarmupOption = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    wire: WireOption = False,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Measures turns: from the caller's last word to the first word of the reply.

    Arms are ways to use Letta: hybrid, letta, direct (no memory), and hybrid-down: hybrid with
    a stopped Letta; labvoice, the default agent without Letta; and stock and stock-naive, as for
    `labvoice bench connect`.

    Example: labvoice bench turns --arms stock,stock-naive,labvoice --llm paced --trials 20

    Agents of yours stand beside them, each as an arm, or in labvoice.toml.

    Example: labvoice bench turns --arm mine=agent.py --arm before=agent.py@main --arm own=own

    Example: labvoice bench turns --arms hybrid,letta,direct --llm paced --trials 20

    Example: labvoice bench turns --arm good=own --arm bad=own --link bad:delay=80ms,loss=3%

    Example: labvoice bench turns --arm quiet=own --arm loud=own --noise loud:street --snr 10
    """
    from labvoice.bench.arms import TURN_ARMS

    chosen = _chosen(arms, agents, TURN_ARMS, voice)
    return await _bench(
        "turns", options, wire=wire, trials=trials, turns=turns, warmup=warmup, **chosen
    )


@bench_app.command("endpointing")
@command()
async def bench_endpointing(
    trials: TrialsOption = 16,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns in each call.")] = 1,
    warmup: WarmupOption = 1,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Ends of a turn, a,b,…: seconds of silence (0.4), or DETECTOR[@THRESHOLD]"
            "[:MIN_DELAY[:MAX_DELAY]] of v1-mini, smart-turn, either, silence, both, dynamic.",
        ),
    ] = "",
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    offline: Annotated[
        bool, typer.Option("--offline", help="No calls: the detectors' curves on the audio alone.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", exists=True, dir_okay=False, help="Turns of eot-bench, as Parquet."),
    ] = None,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Measures the trade at the end of a turn: turns cut in on, against the delay after the end.

    Some of the caller's turns have pauses. In calls each arm is one setting, and a point; with
    --offline each detector hears the same audio and gets its whole curve, over all delays. The
    result recommends a setting and says what it costs.

    Example: labvoice bench endpointing --offline

    Example: labvoice bench endpointing --arms 0.2,0.4,silence:0.6,smart-turn:0.3:1.5 --llm paced
    """
    from labvoice.bench.arms import choose_endpointing
    from labvoice.bench.base import RunOptions
    from labvoice.bench.endpointing import on_audio
    from labvoice.errors import UsageError
    from labvoice.settings import load_settings
    from labvoice.speech.turn_ends import read_rows

    asked = _all_arms(arms, agents)
    chosen = choose_endpointing(asked) if asked else []
    around = _surroundings(chosen, voice)
    if offline and (any(around.values()) or any(arm.target for arm in chosen)):
        raise UsageError(
            "--offline makes no calls: it takes no agent, no link, no noise and no line",
            "name detectors with `--arms`",
        )
    said = None if rows is None else read_rows(rows)
    if offline:
        run = await on_audio(
            load_settings(), arms, said, RunOptions(options.out, command_line(), tell)
        )
        await _tell(run, options.json_path)
        return 0
    return await _bench(
        "endpointing",
        options,
        workers=0,
        trials=trials,
        turns=turns,
        warmup=warmup,
        arms=asked,
        said=said,
        **around,
    )


@bench_app.command("interrupt")
@command()
async def bench_interrupt(
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
    warmup: WarmupOption = 1,
    arms: ArmsOption = "",
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Measures turn-taking: the caller interrupts, says "mm-hm", coughs, pauses.

    How often and how fast the agent yields to an interruption and answers it, how often it goes
    on over a sound that asks for nothing, how often it cuts a turn with a pause in two. Arms are
    settings of the own agent (duration-0.2, duration-1.0, words-2, no-resume, silence-alone,
    v1-mini, off; labvoice is the default), stock and stock-naive, and agents of yours. Exits 1
    if an agent says nothing more.

    Example: labvoice bench interrupt --llm paced --arms labvoice,words-2,off --trials 10

    Example: labvoice bench interrupt --agent agent.py --ask "Tell me a long story." --probes cough
    """
    from labvoice.bench.arms import INTERRUPT_ARMS
    from labvoice.speech.probes import check_probes

    asked = _chosen(arms, agents, INTERRUPT_ARMS, voice)
    check_probes(probes)
    own = any(each.agent_name is None and each.target is None for each in asked["arms"])
    asked |= {name: value for name, value in (("ask", ask), ("at", at)) if value is not None}
    asked |= {"trials": trials, "probes": probes, "warmup": warmup}
    return await _bench("interrupt", options, workers=int(own), **asked)


@command("llm")
async def calibrate(
    trials: TrialsOption = 10,
    arms: Annotated[
        str,
        typer.Option("--arms", help="What is on the line: plain, quiet, breath, noise, music."),
    ] = "plain",
    link: LinksOption = None,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Measures the instrument's own error, against replies of known delay and dated packets.

    That of this machine is kept for later runs; over a link it is not.

    Example: labvoice calibrate --trials 10 --arms plain,quiet,breath,noise,music
    """
    paced = dataclasses.replace(options, llm="paced")
    return await _bench(
        "calibrate", paced, workers=0, wire=True, trials=trials, arms=arms, links=link or []
    )


@bench_app.command("burst")
@command("arm", "greeting_timeout")
async def bench_burst(
    rooms: Annotated[int, typer.Option("--rooms", min=1, help="Rooms dispatched at once.")] = 50,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Bursts of each arm.")] = 5,
    warmup: WarmupOption = 1,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers that share them.")] = 2,
    arms: ArmsOption = "plain,confirmed",
    agents: AgentOptions = NO_AGENTS,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> int:
    """Dispatches to many rooms at once: each must get exactly one agent.

    The arm plain uses the server's CreateDispatch alone, as the baseline.

    Example: labvoice bench burst --rooms 50
    """
    from labvoice.bench.arms import choose
    from labvoice.bench.burst import BURST_ARMS

    choose(arms, BURST_ARMS)
    asked = {"trials": trials, "workers": workers, "arms": arms, "warmup": warmup}
    run = await _run(
        "burst",
        CallOptions(out=out),
        {"workers": 0, "llm": "paced", "supervise": False},
        rooms=rooms,
        agent=agents.one(),
        **asked,
    )
    result = await _tell(run, json_path)
    # The plain arm is the baseline; the confirmed one decides the exit code.
    confirmed = result.get("arms", {}).get("confirmed", result)
    return 1 if confirmed["failed"] else 0


@bench_app.command("load")
@command("arm")
async def bench_load(
    callers: Annotated[
        int | None, typer.Option("--callers", min=1, help="Callers at once.")
    ] = None,
    ramp_levels: Annotated[
        str | None,
        typer.Option("--ramp", help="Levels of callers: 1..16 doubles up to 16; or 4,5,6."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, help="Turns a minute of each caller.")
    ] = 6.0,
    seconds: Annotated[
        float, typer.Option("--for", min=1, help="Seconds that each caller talks in a level.")
    ] = 60.0,
    limit_s: Annotated[
        float, typer.Option("--limit", min=0, help="Seconds within which p95 has to stay.")
    ] = 1.2,
    whole: Annotated[
        bool, typer.Option("--whole", help="Measure all levels, also those beyond the knee.")
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="Address of a Dask scheduler; processes here if absent."),
    ] = None,
    echo_agent: Annotated[
        bool,
        typer.Option("--echo-agent", help="Call agents without models: the media path alone."),
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers of the agent.")] = 1,
    warmup: WarmupOption = 1,
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Loads agents with callers who talk, in several processes or on several machines (Dask).

    An open loop: turns begin at a constant rate, and one that begins late counts from its intended
    start. A ramp ends at the knee: the first level whose p95 is above --limit. A level at which the
    callers themselves were late is void.

    Example: labvoice bench load --ramp 1..8 --llm paced

    Example: labvoice bench load --callers 100 --echo-agent --scheduler tcp://10.0.0.5:8786

    Example: labvoice bench load --ramp 1..8 --llm paced --link 4g --noise street
    """
    from labvoice.bench.load import level_arm, ramp
    from labvoice.errors import UsageError

    if (callers is None) == (ramp_levels is None):
        raise UsageError("one of --callers and --ramp is needed", "such as `--ramp 1..8`")
    levels = [callers] if callers is not None else ramp(ramp_levels or "")
    around = _surroundings([level_arm(each) for each in levels], voice)
    target = agents.one()
    lab = {
        "workers": workers if target is None and not echo_agent else 0,
        "supervise": False,
        "model": not echo_agent and (target is None or target.kind != "named"),
    }
    asked = {"rate": rate, "seconds": seconds, "limit_s": limit_s, "echo": echo_agent, **around}
    asked |= {"whole": whole, "warmup": warmup}
    run = await _run("load", options, lab, callers=levels, agent=target, client=scheduler, **asked)
    await _tell(run, options.json_path)
    return 1 if run.levels[0].void or not run.levels[0].within(limit_s) else 0


@bench_app.command("http")
@command()
async def bench_http(
    rate_hz: Annotated[float, typer.Option("--rate", min=1, help="Dispatches a second.")] = 200,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Duration of the load.")] = 30,
    idle: Annotated[int, typer.Option("--idle", min=0, help="Idle clients meanwhile.")] = 1000,
    restart_s: Annotated[
        float, typer.Option("--restart", min=0, help="Seconds of load around a restart.")
    ] = 10,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> int:
    """Measures the HTTP service under load, with a stub instead of the lab.

    Example: labvoice bench http --rate 200 --seconds 30
    """
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
@command()
async def bench_leaks(
    calls: Annotated[
        int, typer.Option("--calls", min=1, help="Calls between the two measurements.")
    ] = 100,
    warmup: WarmupOption = 3,
    voice: VoiceOptions = NO_VOICE,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Prints the resources of worker, lab and server before and after many short calls.

    Exits 1 if one of them grew significantly.

    Example: labvoice bench leaks --calls 100
    """
    from labvoice.bench.arms import DEFAULT
    from labvoice.bench.base import RunOptions
    from labvoice.bench.leaks import leaks
    from labvoice.lab import Lab
    from labvoice.settings import load_settings

    around = _surroundings([DEFAULT], voice)

    llm = load_settings(llm=options.llm).llm or "paced"
    async with Lab(progress=tell, llm=llm, letta=False, recording=options.format) as lab:
        run, frame = await leaks(
            lab, calls, RunOptions(options.out, command_line(), tell, warmup=warmup, **around)
        )
    tell(frame.round(1).to_string())
    kept = len(run.recordings)
    where = f"{kept} recordings in {run.path.with_suffix('')}" if kept else "no recordings"
    tell(f"calls: {run.path}, {where}")
    ok = bool(frame["ok"].all())
    figures = {"calls": calls, "ok": ok, "figures": frame.T.to_dict(), "run": str(run.path)}
    write_json(options.json_path, figures)
    return 0 if ok else 1


@bench_app.command("failover")
@command("arm")
async def bench_failover(
    trials: TrialsOption = 10,
    kill: Annotated[
        str,
        typer.Option("--kill", help="What to kill: job, worker, hang; job, hang with --agent."),
    ] = "",
    workers: Annotated[int, typer.Option("--workers", min=2, help="Workers of the pool.")] = 2,
    agents: AgentOptions = NO_AGENTS,
    voice: VoiceOptions = NO_VOICE,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Kills agents during calls and measures the time until a replacement listens.

    Example: labvoice bench failover --trials 10 --kill job,worker,hang

    Example: labvoice bench failover --agent my_agent/agent.py --trials 3
    """
    from labvoice.bench.arms import Arm
    from labvoice.bench.failover import parse_kills

    target = agents.one()
    around = _surroundings([Arm(each) for each in parse_kills(kill, target)], voice)
    lab = {"workers": workers if target is None else 0}
    run = await _run("failover", options, lab, trials=trials, kills=kill, agent=target, **around)
    return 1 if (await _tell(run, options.json_path))["failed"] else 0


async def _bench(
    kind: str, options: CallOptions, *, workers: int = 1, wire: bool = False, **given: Any
) -> int:
    """Makes the run of `lab.bench.KIND(**given)` in a lab as the arms need it."""
    from labvoice.bench.arms import Arm
    from labvoice.settings import load_settings

    arms = [arm for arm in given["arms"] if isinstance(arm, Arm)]
    targets = [arm.target for arm in arms if arm.target is not None]
    if targets and len(targets) == len(given["arms"]):
        workers = 0  # each arm has its own
    named = [target for target in targets if target.kind == "named"]
    modes = {arm.mode for arm in arms if arm.mode}
    lab = {
        "workers": workers,
        "letta": bool(modes),
        # If Letta itself is measured, it does not have to wait for the others.
        "mode": "letta" if "letta" in modes else None,
        "fresh": load_settings().letta_base_url is None,  # an external server is used as it is
        "supervise": False,
        "model": workers > 0 or not targets or len(named) < len(targets),
        "wire": wire,
    }
    run = await _run(kind, options, lab, **given)
    result = await _tell(run, options.json_path)
    if kind == "endpointing":  # too short a delay is expected to cut in
        return 1 if result["failed"] == result["n"] else 0
    return 1 if result["failed"] else 0


async def _run(kind: str, options: CallOptions, lab: dict[str, Any], **given: Any) -> Run:
    """Makes the run of `lab.bench.KIND(**given)` in a lab, without Letta unless told."""
    from labvoice.lab import Lab

    settings = {"letta": False, "llm": options.llm, "recording": options.format, **lab}
    async with Lab(progress=tell, **settings) as started:
        run: Run = await getattr(started.bench, kind)(
            out=options.out, command=command_line(), progress=tell, **given
        )
    return run


async def _tell(run: Run, json_path: Path | None) -> dict[str, Any]:
    """Prints a run's summary, and sends its traces; returns the machine-readable result."""
    tell(repr(run))
    await send_traces(run)
    result = run.to_json()
    write_json(json_path, result)
    return result
