"""The worker's part in "exactly one agent": it rejects a job for a second agent."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from livekit import api
from livekit.protocol.agent import Job

from labvoice.protocol.metadata import refusal
from labvoice.proxies import livekit_api
from labvoice.settings import Settings

logger = logging.getLogger("labvoice.agent")

_ASK_TIMEOUT_S = 1.0


async def refused_by_server(settings: Settings, job: Job) -> str:
    """As :func:`duplicate_refusal`, for a job's process, which has no client of the server."""
    url, key, secret = settings.livekit
    async with livekit_api(url, key, secret.get_secret_value()) as server:
        return await duplicate_refusal(server, job)


async def duplicate_refusal(server: api.LiveKitAPI, job: Job) -> str:
    """Returns why the job's dispatch is not valid any more, from the server; empty if it is valid.

    A server that does not answer in time counts as valid: the dispatcher removes a duplicate agent,
    but a missing agent means silence.
    """
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            listed = await server.agent_dispatch.list_dispatch(job.room.name)
    except (api.TwirpError, aiohttp.ClientError, TimeoutError) as error:
        logger.warning("the server did not say whether %s counts: %s", job.dispatch_id, error)
        return ""
    return refusal(listed, job.agent_name, job.dispatch_id)
