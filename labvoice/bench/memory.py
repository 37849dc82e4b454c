"""Letta in benchmarks: an agent for each arm, and the memory stages."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from labvoice.bench.arms import Arm
from labvoice.caller.call import Call
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.protocol.metadata import JobMetadata
from labvoice.runs.run import RunWriter

if TYPE_CHECKING:
    from labvoice.lab import Lab

_PROVIDER: Final = "fast"
_SYNC_TIMEOUT_S: Final = 30.0


@asynccontextmanager
async def memories_of(
    lab: Lab, arms: Sequence[Arm], progress: Callable[[str], None]
) -> AsyncIterator[dict[str, JobMetadata]]:
    """An agent for each arm that uses Letta, until the run ends; gives what its dispatches carry.

    In the letta arm Letta uses the agents' own fast model, so that the arms differ in
    the way to it and not in the model. The other arms never wait for Letta's model.
    """
    modes = {arm.name: arm.mode for arm in arms if arm.mode}
    if not modes:
        yield {}
        return
    progress("Letta: waiting for it")
    await lab.letta_server.until_up()
    found: dict[str, JobMetadata] = {}
    try:
        for name, mode in modes.items():
            model = await _fast_model(lab) if mode == "letta" else None
            agent = await lab.letta.create(f"bench {name} {secrets.token_hex(4)}", model=model)
            found[name] = JobMetadata(letta_agent_id=agent, mode=mode)
        yield found
    finally:
        for metadata in found.values():
            assert metadata.letta_agent_id
            with contextlib.suppress(LabvoiceError):  # one left behind does no harm
                await lab.letta.delete(metadata.letta_agent_id)


async def _fast_model(lab: Lab) -> str | None:
    settings = lab.settings
    if lab.letta_server.state == "external" or settings.resolved_llm == "openai":
        return None  # Letta has a model of its own, or already the one that is configured
    assert settings.openai_base_url
    assert settings.llm_model
    return await lab.letta.register_model(
        _PROVIDER, settings.openai_base_url, None, settings.llm_model
    )


async def wait_for_memory(call: Call) -> None:
    """Waits, within reason, until all turns of a call are in Letta, so that they can be timed."""
    if call.memory.get("state") == "ready":
        with contextlib.suppress(StageTimeoutError):
            await call.until_synced(_SYNC_TIMEOUT_S)


def record_memory(run: RunWriter, trial: int, call: Call) -> None:
    """Records how long the memory took to load, and each turn to be in Letta, where it has."""
    if call.memory.get("memory_load_s") is not None:
        run.stage(trial, "memory_load", call.memory["memory_load_s"])
    for turn in call.turns:
        if "memory_sync" in turn.metrics:
            run.stage(trial, "memory_sync", turn.metrics["memory_sync"], turn=turn.number)
