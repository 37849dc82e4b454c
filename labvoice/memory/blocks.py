"""An agent's memory blocks from Letta, loaded at the start of a call and whenever they change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.memory.client import translate_errors

if TYPE_CHECKING:
    from letta_client import AsyncLetta

_log = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
"""Polling interval for changed blocks during a session, in seconds."""
_LONGEST_INTERVAL_S: Final = 15.0
_TIMEOUT_S: Final = 30.0  # in the background
_MOST_BLOCKS: Final = 100


@dataclass(frozen=True)
class MemorySnapshot:
    """The memory blocks of an agent at one moment.

    Attributes:
        blocks: Text of each block, by label, in the server's order.
    """

    blocks: dict[str, str]

    @property
    def text(self) -> str:
        """The blocks as text for the prompt; empty ones are left out."""
        return "\n\n".join(
            f"<{label}>\n{value.strip()}\n</{label}>"
            for label, value in self.blocks.items()
            if value.strip()
        )


async def load_memory(
    client: AsyncLetta, letta_agent_id: str, timeout_s: float = _TIMEOUT_S
) -> MemorySnapshot:
    """Loads an agent's memory blocks.

    Raises:
        StageTimeoutError: The server did not answer in time.
        AgentMissingError: There is no such agent.
        CredentialsError: The key was refused.
        ServerUnreachableError: No answer, or not one from Letta.
    """
    try:
        async with asyncio.timeout(timeout_s):
            with translate_errors(client, f"the memory of {letta_agent_id}"):
                page = await client.agents.blocks.list(letta_agent_id, limit=_MOST_BLOCKS)
                blocks = {block.label: str(block.value) for block in page.items if block.label}
    except TimeoutError:
        raise StageTimeoutError(
            "memory_load", timeout_s, "the Letta server has not answered", "it may be overloaded"
        ) from None
    return MemorySnapshot(blocks)


async def watch(
    client: AsyncLetta,
    letta_agent_id: str,
    on_change: Callable[[MemorySnapshot], None],
    *,
    on_error: Callable[[LabvoiceError | None], None] = lambda _: None,
    interval_s: float = INTERVAL_S,
) -> None:
    """Follows an agent's memory until cancelled; a failing server never ends it.

    Args:
        on_change: Called with the memory when it is first loaded and when it has changed.
        on_error: Called with the error when loading starts to fail, and with None when it works
            again.
        interval_s: Polling interval, in seconds; longer while the server fails.
    """
    known: MemorySnapshot | None = None
    failing, pause_s = False, 0.0
    while True:
        await asyncio.sleep(pause_s)
        try:
            found = await load_memory(client, letta_agent_id)
        except LabvoiceError as error:
            pause_s = min(_LONGEST_INTERVAL_S, max(interval_s, pause_s * 2))
            if not failing:
                _log.warning("no memory from Letta for now: %s", error.observed)
                on_error(error)
            failing = True
            continue
        pause_s = interval_s
        if failing:
            on_error(None)
        failing = False
        if found != known:
            known = found
            on_change(found)
