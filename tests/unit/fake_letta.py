"""A stand-in for a Letta server that speaks its HTTP and fails on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from labvoice.memory.text import user_part
from tests.serving import serving as serving_app


class FakeLetta:
    """Keeps what it is told, as Letta does: also when the answer never arrives.

    Attributes:
        told: What the user said in each stored message, by agent, in order.
        faults: What to do with the next messages, one word each: `500` (refuse), `500-after`
            (store, then refuse), `garbage-after` (store, answer nonsense), `hang` (store after
            `hang_s`, long after the client has gone), `proxy-500` (a proxy's page, while Letta
            stores it after `hang_s`), `401`, `401-model` (its model refuses its key), `404`,
            `422`; where it is to stream: `dies` (after some words), `pings` (nothing else).
        gone: Agents that were deleted.
        conflicts: How many times an agent cannot be deleted, for a run of it just begins.
        names: Ids of agents by name.
        cancelled: Ids of runs that were cancelled.
        list_s: How long the list of agents takes, in seconds.
        list_status: HTTP status of the list of agents.
        down: Whether every request is refused with HTTP 503.
        failing_looks: How many questions for the runs are answered with HTTP 500.
        most_at_once: The most messages that one agent was told at the same time.
    """

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.told: dict[str, list[str]] = {}
        self.blocks: dict[str, dict[str, str]] = {}
        self.faults: list[str] = []
        self.names: dict[str, str] = {}
        self.down = False
        self.failing_looks = 0
        self.conflicts = 0
        self.list_s, self.list_status = 0.0, 200
        self.gone: set[str] = set()
        self.cancelled: list[str] = []
        self.delay_s = 0.0
        self.hang_s = 1.0
        self.requests = 0
        self.most_at_once = 0
        self._otids: dict[str, list[str]] = {}
        self._active: dict[str, int] = {}
        self._runs: list[dict[str, Any]] = []
        self._late: set[asyncio.Task[None]] = set()
        self.app = Starlette(
            routes=[
                Route("/v1/agents/", self._list_agents),
                Route("/v1/agents/{agent}/messages", self._tell, methods=["POST"]),
                Route("/v1/agents/{agent}/messages", self._history),
                Route("/v1/agents/{agent}/messages/cancel", self._cancel, methods=["POST"]),
                Route("/v1/agents/{agent}", self._retrieve),
                Route("/v1/agents/{agent}", self._delete, methods=["DELETE"]),
                Route("/v1/agents/{agent}/core-memory/blocks", self._list_blocks),
                Route("/v1/runs/", self._list_runs),
            ]
        )

    def has(self, agent: str, otid: str) -> None:
        """Puts a message into an agent's history, as if a stream had told it."""
        self._otids.setdefault(agent, []).append(otid)

    async def finish(self) -> None:
        """Waits until everything that it was told is stored."""
        await asyncio.gather(*self._late)

    async def _retrieve(self, request: Request) -> Response:
        agent = request.path_params["agent"]
        if agent in self.gone:
            return JSONResponse({"detail": "Agent not found"}, status_code=404)
        return JSONResponse({"id": agent, "name": agent})

    async def _delete(self, request: Request) -> Response:
        if self.conflicts:
            self.conflicts -= 1
            return JSONResponse({"detail": "violates foreign key constraint"}, status_code=409)
        self.gone.add(request.path_params["agent"])
        return JSONResponse({})

    async def _cancel(self, request: Request) -> Response:
        self.cancelled += (await request.json())["run_ids"]
        return JSONResponse({})

    async def _stream(self, fault: str) -> AsyncIterator[str]:
        def event(kind: str, **facts: Any) -> str:
            facts |= {"message_type": kind, "run_id": "run-0", "id": "message-0"}
            return f"data: {json.dumps({**facts, 'date': datetime.now(UTC).isoformat()})}\n\n"

        yield event("ping")
        if fault == "pings":
            while True:
                await asyncio.sleep(0.05)
                yield event("ping")
        call = {"name": "core_memory_append", "arguments": "{}", "tool_call_id": "call-0"}
        yield event("tool_call_message", tool_call=call)
        yield event(
            "tool_return_message", tool_return="None", status="success", tool_call_id="call-0"
        )
        yield event("assistant_message", content="I have ")
        if fault == "dies":
            raise ConnectionError("killed")
        yield event("assistant_message", content="made a note.")
        yield event("stop_reason", stop_reason="end_turn")
        yield "data: [DONE]\n\n"

    async def _list_agents(self, request: Request) -> Response:
        await asyncio.sleep(self.list_s)
        if self.list_status != 200:
            return JSONResponse({"detail": ""}, status_code=self.list_status)
        if "after" in request.query_params:
            return JSONResponse([])
        return JSONResponse([{"id": id_, "name": name} for name, id_ in self.names.items()])

    async def _tell(self, request: Request) -> Response:
        self.requests += 1
        agent = request.path_params["agent"]
        body = await request.json()
        [message] = body["messages"]
        if self.down:
            return JSONResponse({"detail": "down"}, status_code=503)
        fault = self.faults.pop(0) if self.faults else ""
        if body.get("streaming"):
            return StreamingResponse(self._stream(fault), media_type="text/event-stream")
        if agent in self.gone:
            return JSONResponse({"detail": "Agent not found"}, status_code=404)
        if fault in {"500", "404", "401", "422"}:
            return JSONResponse({"detail": fault}, status_code=int(fault))
        if fault == "401-model":
            inner = {"type": "llm_authentication", "message": "", "detail": "no such key"}
            return JSONResponse({"error": inner}, status_code=401)
        self._active[agent] = self._active.get(agent, 0) + 1
        self.most_at_once = max(self.most_at_once, self._active[agent])
        run = {
            "id": f"run-{len(self._runs)}",
            "agent_id": agent,
            "status": "created",
            "created_at": datetime.now(UTC).isoformat(),
        }
        self._runs.append(run)

        async def store(after_s: float) -> None:
            await asyncio.sleep(after_s)
            self.told.setdefault(agent, []).append(user_part(message["content"]))
            self._otids.setdefault(agent, []).append(message["otid"])
            self._active[agent] -= 1
            run["status"] = "completed"

        late = fault in {"hang", "proxy-500"}
        task = asyncio.create_task(store(self.hang_s if late else self.delay_s))
        self._late.add(task)
        if fault == "proxy-500":
            return Response("<html>proxy</html>", 500, media_type="text/html")
        await asyncio.shield(task)
        if fault == "500-after":
            return JSONResponse({"detail": "500"}, status_code=500)
        if fault == "garbage-after":
            return Response("<html>proxy</html>", media_type="text/html")
        ending = {"message_type": "stop_reason", "stop_reason": "end_turn"}
        return JSONResponse({"messages": [], "stop_reason": ending, "usage": {}})

    async def _history(self, request: Request) -> Response:
        otids = self._otids.get(request.path_params["agent"], [])
        return JSONResponse(
            [
                {
                    "message_type": "user_message",
                    "id": f"message-{i}",
                    "date": datetime.now(UTC).isoformat(),
                    "content": "",
                    "otid": otid,
                }
                for i, otid in enumerate(otids)
            ]
        )

    async def _list_runs(self, request: Request) -> Response:
        if self.failing_looks:
            self.failing_looks -= 1
            return JSONResponse({"detail": "500"}, status_code=500)
        agent = request.query_params["agent_id"]
        return JSONResponse([run for run in self._runs if run["agent_id"] == agent])

    async def _list_blocks(self, request: Request) -> Response:
        if self.down:
            return JSONResponse({"detail": "down"}, status_code=503)
        await asyncio.sleep(self.delay_s)
        blocks = self.blocks.get(request.path_params["agent"])
        if blocks is None:
            return JSONResponse({"detail": "no such agent"}, status_code=404)
        return JSONResponse([{"id": k, "label": k, "value": v} for k, v in blocks.items()])


@asynccontextmanager
async def serving(fake: FakeLetta) -> AsyncIterator[FakeLetta]:
    """Serves it on its port."""
    async with serving_app(fake.app, int(fake.base_url.rpartition(":")[2])):
        yield fake
