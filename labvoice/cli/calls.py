"""Commands about one agent in one room: call, dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labvoice.cli.agents import (
    NO_AGENTS,
    NO_VOICE,
    AgentOptions,
    LinkOption,
    MetadataOption,
    VoiceOptions,
    WireOption,
)
from labvoice.cli.common import (
    CALL_OPTIONS,
    AgentNameOption,
    CallOptions,
    JsonOption,
    LettaAgentOption,
    PortOption,
    command,
    command_line,
    console,
    send_traces,
    tell,
    tell_recordings,
    write_json,
)
from labvoice.errors import DispatchError, LabvoiceError, SettingsError, UsageError

if TYPE_CHECKING:  # they take a second to import, which `--help` need not wait for
    from labvoice.caller.call import Call
    from labvoice.settings import Settings
    from labvoice.speech.utterances import Utterance
    from labvoice.targets.target import Target


def _check_metadata(metadata: str | None, letta_agent: str | None) -> None:
    if metadata is not None and letta_agent is not None:
        raise UsageError("both --metadata and --letta-agent are given", "remove one of them")


@command("arm", "link")
async def call(
    say: Annotated[list[str] | None, typer.Option("--say", help="A text to speak.")] = None,
    wav: Annotated[list[Path] | None, typer.Option("--wav", help="A recording to speak.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel of stereo recordings to play: left, right or mix.")
    ] = None,
    room: Annotated[str | None, typer.Option("--room", help="Room; default: a new one.")] = None,
    agent_name: AgentNameOption = None,
    letta_agent: LettaAgentOption = None,
    strategy: Annotated[
        str,
        typer.Option(help="When to dispatch: sequential, concurrent, token, ahead or automatic."),
    ] = "sequential",
    agents: AgentOptions = NO_AGENTS,
    link: LinkOption = None,
    voice: VoiceOptions = NO_VOICE,
    wire: WireOption = False,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Makes one simulated call and prints every mark; texts are spoken before files.

    The call is kept as a run with its recording, in `runs/` or at --out.

    Example: labvoice call --say "What is the capital of France?"

    Example: labvoice call --agent my_agent/agent.py --say "Are you open on Sunday?"
    """
    import asyncio

    from labvoice.dispatch import strategy_of
    from labvoice.link.impairment import LinkProfile
    from labvoice.speech.mono import check_channel
    from labvoice.speech.utterances import load_wav
    from labvoice.targets.config import read_text

    metadata = agents.metadata
    _check_metadata(metadata, letta_agent)
    # A name alone is an agent too, and metadata may be for it.
    foreign = agents.agent is not None or not (agent_name or metadata)
    target = agents.one() if foreign else None
    if target is not None and (agent_name or letta_agent):
        raise UsageError(
            "another agent is named by --agent or labvoice.toml",
            "leave out --agent-name and --letta-agent",
        )
    if target is None and metadata is not None:
        metadata = read_text(metadata)
    when = strategy_of(strategy)
    profile = LinkProfile.parse(link) if link else None
    conditions = voice.of().get("")
    recording = options.format
    files = [load_wav(path, check_channel(channel)) for path in wav or ()]
    for path, utterance in zip(wav or (), files, strict=True):
        if utterance.notice:
            tell(f"notice: {path}: {utterance.notice}")
    from labvoice.bench.base import background
    from labvoice.lab import Lab  # takes seconds: a wrong file raises before

    async with Lab(
        progress=tell,
        llm=options.llm,
        letta=letta_agent is not None,
        supervise=False,
        workers=1 if target is None else 0,
        model=target is None or target.kind != "named",
        recording=recording,
        wire=wire,
    ) as lab:
        texts = [await lab.utterance(text) for text in say or ()]
        if conditions is not None:
            texts = await asyncio.to_thread(conditions.voiced, texts, lab.settings, tell)
        spoken = texts + files
        if letta_agent is not None:
            try:
                await lab.letta_server.until_up()
            except LabvoiceError as error:
                tell(f"notice: the call begins without memory: {error.observed}")
        if target is not None:
            agent = await lab.add_target(target)
            tell(f"agent: {agent}")
            made = lab.new_call(room, agent_name=agent, strategy=when.name, link=profile)
        else:
            if when.every_room:
                await lab.add_workers(agent_name="")
            made = lab.new_call(
                room,
                agent_name=agent_name,
                metadata=metadata or await lab.metadata(letta_agent),
                strategy=when.name,
                link=profile,
            )
        if conditions is not None:
            made.sound_like(conditions, await background(conditions, lab.settings, tell))
        try:
            await converse(made, spoken)
        finally:
            await lab.end_call(made)
            for notice in made.notices:
                tell(f"notice: {notice}")
            _print_marks(made)
            await _keep(made, lab.settings, target, options.out)
            write_json(options.json_path, _facts(made))
    return 0


async def converse(call: Call, spoken: Sequence[Utterance]) -> None:
    """Connects, hears the greeting, speaks, and prints what both sides said."""
    await call.connect()
    if greeting := await call.hear_greeting():
        tell(f"agent: {greeting}")
    for utterance in spoken:
        await call.say(utterance)
        turn = await call.hear()
        tell(f"said: {turn.said}\nunderstood: {turn.transcript}\nagent: {turn.reply}")


async def _keep(call: Call, settings: Settings, target: Target | None, out: Path | None) -> None:
    """Writes the call as a run, with its recording; a disk that takes neither is no failed call."""
    from labvoice.bench.record import record_call

    try:
        run = record_call(settings, call, out, command=command_line(), target=target)
    except LabvoiceError as error:
        tell(f"warning: the call is not kept: {error}")
        return
    tell(f"run: {run.path}")
    tell_recordings(run)
    await send_traces(run)
    for sentence in run.warnings:
        tell(f"warning: {sentence}")


def _print_marks(call: Call) -> None:
    from rich.table import Table

    from labvoice.show import CANNOT_BE

    zero_s = call.marks.get("click", 0.0)
    table = Table("mark", "ms since click")
    named = list(call.marks.items())
    for turn in call.turns:
        named += [(f"{name} (turn {turn.number + 1})", at_s) for name, at_s in turn.marks.items()]
    for name, at_s in sorted(named, key=lambda item: item[1]):
        table.add_row(name, f"{(at_s - zero_s) * 1000:.0f}")
    console().print(table)
    for turn in call.turns:
        heard_s = turn.voice_to_voice_s
        stages = {} if heard_s is None else {"voice_to_voice": heard_s}
        stages |= {} if turn.answer_s is None else {"answer": turn.answer_s}
        words = (
            f"{name} {took_s * 1000:.0f} ms" + (CANNOT_BE if name in turn.implausible else "")
            for name, took_s in (stages | turn.metrics).items()
        )
        tell(f"turn {turn.number + 1}: {turn.outcome}; {', '.join(words) or 'no figures'}")
        if turn.notice:
            tell(f"notice: turn {turn.number + 1}: {turn.notice}")


def _facts(call: Call) -> dict[str, Any]:
    turns = [
        {
            "said": turn.said,
            "transcript": turn.transcript,
            "reply": turn.reply,
            "outcome": turn.outcome,
            "notice": turn.notice,
            "word_error_rate": turn.word_error_rate,
            "user_messages": turn.user_messages,
            "marks": turn.marks,
            "voice_to_voice_s": turn.voice_to_voice_s,
            "answer_s": turn.answer_s,
            **turn.metrics,
        }
        for turn in call.turns
    ]
    return {"room": call.room_name, "marks": call.marks, "turns": turns}


@command()
async def dispatch(
    room: Annotated[str, typer.Argument(help="Room to put the agent into.")],
    agent_name: AgentNameOption = None,
    letta_agent: LettaAgentOption = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 10.0,
    metadata: MetadataOption = None,
    port: PortOption = 9000,
    json_path: JsonOption = None,
) -> int:
    """Dispatches exactly one agent into a room of a running server, and confirms that it joined.

    With LABVOICE_API_KEY set, the diagnosis of a failure includes the workers of a running
    `labvoice up`.

    Example: labvoice dispatch my-room --agent-name letta-voice-agent
    """
    from labvoice.dispatch import Dispatcher
    from labvoice.dispatch.service_evidence import service_evidence
    from labvoice.memory.api import LettaApi
    from labvoice.protocol.metadata import JobMetadata
    from labvoice.settings import load_settings, read_settings
    from labvoice.web.settings import WebSettings

    _check_metadata(metadata, letta_agent)
    settings = load_settings()
    if not settings.livekit_url:
        raise SettingsError(
            "no LiveKit server is configured",
            "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
        )
    if letta_agent and settings.letta_base_url:
        async with LettaApi(settings.letta_base_url, settings.letta_api_key) as letta:
            letta_agent = await letta.resolve_at_once(letta_agent)
    async with Dispatcher(
        *settings.livekit,
        service_evidence(settings.livekit_url, read_settings(WebSettings).api_key, port),
    ) as dispatcher:
        try:
            done = await dispatcher.dispatch(
                room,
                agent_name or settings.agent_name,
                metadata=JobMetadata(letta_agent_id=letta_agent) if letta_agent else metadata,
                timeout_s=timeout_s,
            )
        except DispatchError as error:
            words = {"room": room, "message": error.observed, "hint": error.hint}
            write_json(json_path, {"success": False, "outcome": error.outcome, **words})
            raise
    result = {**vars(done), "outcome": "ok", "success": True}
    for name, value in result.items():
        tell(f"{name}: {value}")
    write_json(json_path, result)
    return 0
