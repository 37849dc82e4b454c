"""The Dask cluster that the load bench spreads its callers over, and its workers' clocks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from labvoice.bench.base import RunOptions
from labvoice.bench.callers import ready
from labvoice.caller.clock import ClockOffset
from labvoice.errors import LabvoiceError, SettingsError, UsageError
from labvoice.runs import host

if TYPE_CHECKING:
    from distributed import Client as DaskClient

_CLOCK_ROUNDS: Final = 7
_CONNECT_TIMEOUT_S: Final = 15.0
_CALLERS_A_PROCESS: Final = 10
"""One event loop is on time for so many: it wakes the callers of a process one after the other."""


@asynccontextmanager
async def open_client(
    given: DaskClient | str | None, most: int, options: RunOptions
) -> AsyncIterator[tuple[DaskClient, list[int]]]:
    """Yields a Dask client, and the process ids of its workers where they were started here."""
    try:
        import dask
        from distributed import Client as DaskClient
        from distributed import LocalCluster
    except ImportError:
        raise SettingsError(
            "Dask, which spreads the callers, is not installed", 'pip install "labvoice[scale]"'
        ) from None
    if isinstance(given, DaskClient):
        yield given, []
    elif given is not None:
        try:
            client = await DaskClient(given, asynchronous=True, timeout=_CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {given}: {error}", "such as `tcp://10.0.0.5:8786`"
            ) from None
        async with client:
            yield client, []
    else:
        count = min(most, max(host.cores(), -(-most // _CALLERS_A_PROCESS)))
        options.progress(f"Dask: starting {count} workers on this machine")
        # Dask's profiler would look at the callers' stack a hundred times a second.
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            async with (
                LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    worker_dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    memory_limit=None,
                    asynchronous=True,
                ) as cluster,
                DaskClient(cluster, asynchronous=True) as client,
            ):
                yield client, list((await client.run(os.getpid)).values())


async def ask(client: DaskClient, method: Any, *arguments: Any, **named: Any) -> Any:
    """Calls a method of a Dask client, or of its future, be the client asynchronous or not."""
    if client.asynchronous:
        return await method(*arguments, **named)
    return await asyncio.to_thread(method, *arguments, **named)


async def _each(client: DaskClient, function: Any, address: str) -> Any:
    """Runs a function on one Dask worker."""
    return (await ask(client, client.run, function, workers=[address]))[address]


async def measure_offsets(client: DaskClient) -> dict[str, ClockOffset]:
    """Measures the clock of each Dask worker against this one; the shortest round trip counts.

    Raises:
        UsageError: There is no Dask worker.
        LabvoiceError: One cannot run the callers.
    """
    addresses = list(await ask(client, client.nthreads))
    if not addresses:
        raise UsageError("the Dask cluster has no worker", "start one: `dask worker ADDRESS`")
    found: dict[str, ClockOffset] = {}
    for address in addresses:
        try:
            await _each(client, ready, address)  # imports what a call needs
            for _ in range(_CLOCK_ROUNDS):
                asked_s = time.monotonic()
                there_s = await _each(client, time.monotonic, address)
                half_s = (time.monotonic() - asked_s) / 2
                if address not in found or half_s < found[address].uncertainty_s:
                    found[address] = ClockOffset(there_s - asked_s - half_s, half_s)
        except (ImportError, AttributeError) as error:
            raise LabvoiceError(
                f"the Dask worker at {address} cannot run callers: {error}",
                "install the same labvoice[scale] there",
            ) from None
    return found
