"""`labvoice try`: the shortest way to measure an agent that is not labvoice's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from labvoice.cli.agents import (
    NO_AGENTS,
    NO_VOICE,
    AgentOptions,
    LinkOption,
    VoiceOptions,
    WireOption,
)
from labvoice.cli.calls import converse
from labvoice.cli.common import (
    AGENT_HELP,
    CALL_OPTIONS,
    CallOptions,
    command,
    command_line,
    send_traces,
    tell,
    tell_recordings,
    write_json,
)
from labvoice.errors import LabvoiceError, UsageError


@command("agent", "arm", "out", "link")
async def try_agent(
    agent: Annotated[str, typer.Argument(help=AGENT_HELP)],
    say: Annotated[list[str] | None, typer.Option("--say", help="A text to speak.")] = None,
    agents: AgentOptions = NO_AGENTS,
    link: LinkOption = None,
    voice: VoiceOptions = NO_VOICE,
    wire: WireOption = False,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream",
            help="stt=URL, llm=URL or tts=URL: an OpenAI-compatible model behind the lab's gateway "
            "(LABVOICE_UPSTREAM_LLM, …); its key is LABVOICE_UPSTREAM_LLM_KEY, ….",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("runs/try"),
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Starts an agent unmodified, calls it, and prints every stage; with a report and a recording.

    Example: labvoice try my_agent/agent.py --say "What are your opening hours?"
    """
    import asyncio

    import httpx

    from labvoice.link.impairment import LinkProfile

    target = dataclasses.replace(agents, agent=agent).one()
    assert target is not None
    if link:
        target = dataclasses.replace(target, link=LinkProfile.parse(link))
    conditions = voice.of().get("")
    settings = _upstreams(upstream or []) | {"recording": options.format, "wire": wire}

    from labvoice.bench.base import background, run_path
    from labvoice.bench.record import record_call
    from labvoice.lab import Lab
    from labvoice.report.html import write_report
    from labvoice.speech.utterances import DEFAULT_UTTERANCES

    model = target.kind != "named"
    async with Lab(
        progress=tell,
        llm=options.llm,
        letta=False,
        workers=0,
        supervise=False,
        model=model,
        **settings,
    ) as lab:
        utterances = [await lab.utterance(text) for text in say or DEFAULT_UTTERANCES[:3]]
        if conditions is not None:
            utterances = await asyncio.to_thread(conditions.voiced, utterances, lab.settings, tell)
        called = await lab.add_target(target)
        tell(f"agent: {called}")
        call = lab.new_call(agent_name=called)
        if conditions is not None:
            call.sound_like(conditions, await background(conditions, lab.settings, tell))
        failure = ""
        try:
            await converse(call, utterances)
        except LabvoiceError as error:
            failure = str(error)
        served = None
        if lab.gateway is not None:
            try:
                served = await lab.gateway.report()
            except httpx.HTTPError as error:
                tell(f"warning: the gateway does not answer any more: {error}")
        path = folder / run_path("try").name
        for notice in call.notices:
            tell(f"notice: {notice}")
        run = record_call(
            lab.settings, call, path, command=command_line(), target=target, served=served
        )
        tell(repr(run))
        tell_recordings(run)
        await send_traces(run)
        await lab.end_call(call)
        report = write_report([run], folder / "report.html").resolve()
        result: dict[str, Any] = {**run.to_json(), "agent_name": called.name, "report": str(report)}
        if served is not None:
            result["gateway"] = served
            _tell_models(served)
    tell(f"report: {report}")
    write_json(options.json_path, result)
    if failure:
        tell(f"error: {failure}")
    return 1 if failure else 0


def _upstreams(pairs: Sequence[str]) -> dict[str, Any]:
    """Returns settings by field name."""
    found: dict[str, Any] = {}
    for pair in pairs:
        service, _, url = pair.partition("=")
        if service not in ("stt", "llm", "tts") or not url:
            raise UsageError(
                f"--upstream {service!r} is none of stt=URL, llm=URL, tts=URL",
                "such as --upstream llm=https://api.openai.com/v1#gpt-4.1-mini",
            )
        found[f"upstream_{service}"] = url
    return found


def _tell_models(report: dict[str, Any]) -> None:
    """Says what a model's name in the agent stood for, and what was refused."""
    for models in report["models"].values():
        for asked, answering in models.items():
            tell(f"model {asked} → {answering}")
    for path in report["refused"]:
        tell(f"{path} is not served offline: the SDK took its local fallback")
