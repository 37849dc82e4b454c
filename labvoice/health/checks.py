"""Quick checks of a running lab, which start and load nothing."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import aiohttp
from livekit import api

from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.health.doctor import Check

if TYPE_CHECKING:
    from labvoice.lab import Lab

_TIMEOUT_S: Final = 3.0
_SCRATCH_TIMEOUT_S: Final = 15.0


async def look(lab: Lab) -> list[Check]:
    """Checks the LiveKit server, the workers, the model and Letta, each within 3 s."""
    looks: dict[str, Callable[[Lab], Awaitable[str]]] = {
        "livekit": _livekit,
        "workers": _workers,
        "model": _model,
    }
    if lab.has_letta:
        looks["letta"] = _letta
        looks["memory store"] = _memory_store
    return list(await asyncio.gather(*(_check(name, each, lab) for name, each in looks.items())))


async def diagnose(lab: Lab) -> list[Check]:
    """Checks every part and, where LiveKit answers, whether an agent really joins.

    As the doctor does, for a lab that is in use.
    """
    checks = await look(lab)
    if all(check.ok for check in checks if check.name == "livekit"):
        checks.append(await _check("dispatch", _dispatch, lab, _SCRATCH_TIMEOUT_S))
    return checks


async def _check(
    name: str, look: Callable[[Lab], Awaitable[str]], lab: Lab, timeout_s: float = _TIMEOUT_S
) -> Check:
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            observed, hint, ok = await look(lab), "", True
    except TimeoutError:
        words = StageTimeoutError("the answer", timeout_s, "silence").observed
        observed, hint, ok = words, "", False
    except LabvoiceError as error:
        observed, hint, ok = error.observed, error.hint, False
    return Check(name, ok, observed, hint, time.monotonic() - started_s)


async def _livekit(lab: Lab) -> str:
    dispatcher = lab.dispatcher  # raises if the lab was stopped
    async with dispatcher.server_errors():
        listed = await dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    return f"answers and accepts the key; rooms: {len(listed.rooms)}"


async def _workers(lab: Lab) -> str:
    name = lab.settings.agent_name
    if any(each.name == name and each.worker for each in lab.targets):
        running = any(
            each.worker.process.running for each in lab.targets if each.worker and each.name == name
        )
        if not running:
            raise LabvoiceError(f"the worker of {name!r} has ended", "restart `labvoice up`")
        return f"the worker of {name!r} is registered"
    own = [worker for worker in lab.pool.workers if worker.agent_name == name]
    if not own and (lab.stack.server is None or lab.stack.server.version is None):
        # They may run anywhere, and the server does not list them.
        return "none of this lab's own; those elsewhere cannot be asked"
    statuses = await asyncio.gather(*(each.status() for each in own if not each.draining))
    workers = [status for status in statuses if status is not None]
    if not workers:
        raise LabvoiceError(
            f"no worker of this lab answers as {name!r}",
            f"start one with `labvoice worker --agent-name {name}`",
        )
    free = sum(worker.load < worker.load_threshold for worker in workers)
    if not free:
        raise LabvoiceError(
            f"all {len(workers)} workers are full", "start another worker, or end some calls"
        )
    return f"{free} of {len(workers)} take calls"


async def _model(lab: Lab) -> str:
    if lab.stack.model is not None and not lab.stack.model.process.running:
        raise LabvoiceError("the model server has ended", "restart the lab")
    return await lab.model_check.ask()


async def _memory_store(lab: Lab) -> str:
    return f"turns that wait for Letta: {await lab.stack.memory_backlog()}"


async def _letta(lab: Lab) -> str:
    server = lab.letta_server
    if not server.answers:
        raise LabvoiceError(
            f"the Letta server's state is {server.state!r}; calls go on without memory",
            "wait while it starts; if it failed, its log has the reason",
        )
    await server.api.check()
    return "answers"


async def _dispatch(lab: Lab) -> str:
    room = f"scratch-{secrets.token_hex(4)}"
    dispatcher = lab.dispatcher
    started_s = time.monotonic()
    try:
        done = await dispatcher.dispatch(room, lab.settings.agent_name)
        took_s = time.monotonic() - started_s
    finally:
        with contextlib.suppress(api.TwirpError, aiohttp.ClientError):
            await dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
    return f"{done.agent_name!r} joined a scratch room after {took_s * 1000:.0f} ms"
