"""What labvoice asks of a Letta server, against a stand-in that fails on demand."""

from __future__ import annotations

from labvoice.memory.api import LettaApi
from labvoice.stack.processes import free_port
from tests.unit.fake_letta import FakeLetta, serving

AGENT = "agent-00000000-0000-4000-8000-00000000000a"


async def test_an_agent_is_deleted_though_a_run_of_it_just_begins() -> None:
    """Letta refuses that for a moment; whoever deletes need not know."""
    async with serving(FakeLetta(free_port())) as letta:
        letta.conflicts = 2
        api = LettaApi(letta.base_url, None)
        try:
            await api.delete(AGENT)
        finally:
            await api.close()
        assert letta.conflicts == 0
        assert letta.gone == {AGENT}
