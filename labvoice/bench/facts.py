"""What a run's header, columns and notes say of the host, the configuration and a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

from labvoice.bench.arms import Arm
from labvoice.bench.instrument import known_error
from labvoice.caller.call import Call
from labvoice.errors import LabvoiceError
from labvoice.link.impairment import LinkProfile
from labvoice.runs import host
from labvoice.settings import Settings
from labvoice.speech import engines
from labvoice.speech.conditions import Conditions
from labvoice.targets.target import BUILT_IN

if TYPE_CHECKING:
    from labvoice.lab import Lab


def words_of(error: BaseException) -> str:
    """Returns what was observed, for the run file."""
    if isinstance(error, LabvoiceError):
        return error.observed
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def host_facts(lab: Lab) -> dict[str, Any]:
    """Describes the host: its load before the lab made any, and the instrument's error on it."""
    version = None if lab.stack.server is None else lab.stack.server.version
    facts = await asyncio.to_thread(host.facts, version, load_1m=lab.load_before)
    return facts | known_error(lab.settings, facts)


async def gateway_facts(lab: Lab) -> dict[str, Any]:
    """Returns which models stood for those that foreign agents asked for, and what was refused."""
    if lab.gateway is None:
        return {}
    try:
        served = await lab.gateway.report()
    except httpx.HTTPError as error:
        return {"gateway_error": words_of(error)}
    models = sorted(
        f"{asked} → {answering}"
        for of_service in served["models"].values()
        for asked, answering in of_service.items()
    )
    found = {"models": ", ".join(models), "refused": ", ".join(sorted(served["refused"]))}
    return {name: text for name, text in found.items() if text}


def columns(settings: Settings) -> dict[str, Any]:
    """Returns the configuration's columns in the frame."""
    recogniser, voice = engines.both(settings)
    return {
        "llm": settings.resolved_llm,
        "llm_model": settings.llm_model,
        "llm_temperature": settings.resolved_temperature,
        "stt": recogniser.label,
        "tts": voice.label,
        "executor": settings.executor,
        "min_endpointing_delay_s": settings.resolved_min_endpointing_delay_s,
        "max_endpointing_delay_s": settings.max_endpointing_delay_s,
        "turn_detector": settings.turn_detector,
    }


def arm_columns(settings: Settings, arm: Arm) -> dict[str, Any]:
    """Returns an arm's columns in the frame; a foreign agent's engines are its own."""
    target, around = arm.target, surroundings(arm.link, arm.conditions)
    if target is not None and target.kind not in BUILT_IN:
        return {"strategy": arm.strategy, **around, **arm.columns}
    changed = dict(arm.settings if target is None else target.settings)
    own = settings.model_copy(update=changed)
    return {**columns(own), "strategy": arm.strategy, **around, **arm.columns}


def surroundings(link: LinkProfile | None, conditions: Conditions | None) -> dict[str, str]:
    """Returns the columns of a link and of how callers sound; none of what is not given."""
    given = {"link": link, "voice": conditions}
    return {name: str(value) for name, value in given.items() if value is not None}


def ending_facts(call: Call, masked: Callable[[str], str] = str) -> dict[str, Any]:
    """Returns what is known at the end of a call; its session events as JSON.

    Args:
        masked: Returns a text without secrets: an endpoint's error may quote the key.
    """
    ready = {"ready_by": call.ready_by} if call.ready_by else {}
    traced = {"traceparent": call.traceparent} if call.traceparent else {}
    events = [
        {**event, "message": masked(event["message"])} if event["event"] == "error" else event
        for event in call.session_events
    ]
    told = {"session_events": json.dumps(events)}
    return {"notice": "; ".join(call.notices), **ready, **traced, **told}


def connection_facts(call: Call) -> dict[str, Any]:
    """Returns what is known of a connection that is no time."""
    assert call.dispatch is not None
    found: dict[str, Any] = {
        "dispatch_id": call.dispatch.dispatch_id,
        "room_existed": call.dispatch.room_existed,
        "attempts": call.dispatch.attempts,
        "greeting": call.greeting,
    }
    if call.offset is not None:
        found["clock_offset_s"] = call.offset.offset_s
        found["clock_uncertainty_s"] = call.offset.uncertainty_s
    return found | call.worker
