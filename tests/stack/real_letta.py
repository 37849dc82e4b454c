"""A real Letta server for tests, and what stands in an agent's history there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from letta_client import AsyncLetta

from labvoice.caller.call import Call
from labvoice.lab import Lab
from labvoice.settings import Settings
from labvoice.stack.letta.server import LettaServer


class Running:
    """A Letta server that can be stopped and started again on the same data."""

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self.settings = settings
        self.state_dir = state_dir
        self.server: LettaServer

    async def start(self) -> None:
        """Starts a server on the data and waits for it."""
        self.server = await LettaServer.start(self.settings, self.state_dir)
        await self.server.until_up()

    def client(self) -> AsyncLetta:
        """A client of its own, as somebody else would make one."""
        assert self.server.api_key is not None
        return AsyncLetta(
            base_url=self.server.base_url, api_key=self.server.api_key.get_secret_value()
        )

    async def tell(self, agent_id: str, text: str) -> list[str]:
        """Sends a message as any Letta client would; returns the kinds of what came back."""
        async with self.client() as client:
            answer = await client.agents.messages.create(
                agent_id, messages=[{"role": "user", "content": text}], max_steps=4
            )
        return [message.message_type or "" for message in answer.messages]

    @asynccontextmanager
    async def fresh(self, lab: Lab) -> AsyncIterator[None]:
        """Begins with no agent, and leaves no call behind: a failed test spoils no other."""
        for agent in (await self.server.api.agents()).itertuples():
            await self.server.api.delete(str(agent.id))
        try:
            yield
        finally:
            for call in lab.recent_calls:
                if isinstance(call, Call):
                    await lab.end_call(call)

    def family(self) -> list[psutil.Process]:
        """Every process of the server."""
        roots = [psutil.Process(process.pid) for process in self.server.processes]
        return [p for root in roots for p in (root, *root.children(recursive=True))]


async def user_messages(client: AsyncLetta, agent: str) -> list[str]:
    """What the user said to an agent, as Letta keeps it, oldest first."""
    page = await client.agents.messages.list(
        agent, order="desc", limit=50, include_return_message_types=["user_message"]
    )
    return [str(m.content) for m in page.items if m.message_type == "user_message"]


async def told_turns(client: AsyncLetta, agent: str) -> list[str | None]:
    """The turns in an agent's own history, as Letta keeps it."""
    page = await client.agents.messages.list(
        agent, order="desc", limit=50, include_return_message_types=["user_message"]
    )
    return [message.otid for message in page.items if message.message_type == "user_message"]
