"""Sends a run to Jaeger by OTLP, and checks what Jaeger then tells of its calls.

`python -m benchmarks.collector RUN.jsonl [--keep]` starts Jaeger in memory on free ports of
loopback (built by Go from the module in `benchmarks/jaeger` at first use, then kept in the cache),
sends the run as `labvoice export --to otlp --words` does, and asks Jaeger's API for its traces.
Every call must be a trace, with all its spans where and as long as the run says, under what they
are part of, with every attribute and every mark. With `--keep` Jaeger stays until Enter is pressed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from opentelemetry.sdk.trace import ReadableSpan

from labvoice.errors import BuildError, LabvoiceError
from labvoice.runs.run import Run
from labvoice.settings import load_settings
from labvoice.stack.processes import ManagedProcess, free_port
from labvoice.traces import send, spans_of

_MODULE = Path(__file__).with_name("jaeger")
_PACKAGE = "github.com/jaegertracing/jaeger/cmd/all-in-one"
_BUILD_TIMEOUT_S = 20 * 60.0
_READY_TIMEOUT_S = 30.0
_KEPT_TIMEOUT_S = 20.0
_POLL_S = 0.2


class Jaeger(NamedTuple):
    """A running Jaeger.

    Attributes:
        otlp: Base address of its collector.
        query: Address of its API and its pages.
    """

    otlp: str
    query: str


def program() -> Path:
    """Returns Jaeger's program from the cache, built there if it is not there yet; blocks.

    Raises:
        BuildError: There is no Go, or it cannot build it.
    """
    pinned = (_MODULE / "go.mod").read_text(encoding="utf-8")
    version = re.search(r"jaegertracing/jaeger v(\S+)", pinned)
    assert version is not None, "benchmarks/jaeger/go.mod pins no Jaeger"
    built = load_settings().cache_dir / "jaeger" / version[1] / "jaeger"
    if built.is_file():
        return built
    if shutil.which("go") is None:
        raise BuildError("Jaeger is a program in Go, and there is no Go", "install Go 1.24")
    print(f"building Jaeger {version[1]}, once", flush=True)
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        made = Path(scratch) / "jaeger"
        options = ["-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(made)]
        done = subprocess.run(
            ["go", "build", "-C", str(_MODULE), *options, _PACKAGE],
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"Jaeger cannot be built:\n{done.stdout[-2000:]}", "see what Go says")
        os.replace(made, built)
    return built


@asynccontextmanager
async def running(built: Path, folder: Path) -> AsyncIterator[Jaeger]:
    """Yields a Jaeger that keeps its traces in memory, on loopback.

    Args:
        built: Its program.
        folder: For its log.

    Raises:
        LabvoiceError: It does not start.
    """
    ports = {
        name: free_port()
        for name in (
            "collector.otlp.http",
            "collector.otlp.grpc",
            "collector.http-server",
            "collector.grpc-server",
            "query.http-server",
            "query.grpc-server",
            "admin.http",
        )
    }
    options = [f"--{name}.host-port=127.0.0.1:{port}" for name, port in ports.items()]
    process = await ManagedProcess.start(
        "Jaeger",
        [built, *options],
        log_path=folder / "jaeger.log",
        env={**os.environ, "SPAN_STORAGE_TYPE": "memory"},
    )
    query = f"http://127.0.0.1:{ports['query.http-server']}"

    async def answers() -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(f"{query}/api/services")).is_success
            except httpx.HTTPError:
                return False

    try:
        await process.until_ready(answers, timeout_s=_READY_TIMEOUT_S)
        yield Jaeger(f"http://127.0.0.1:{ports['collector.otlp.http']}", query)
    finally:
        await process.stop()


async def traces_in(jaeger: Jaeger, session: str, count: int) -> list[dict[str, Any]]:
    """Returns the traces of a run as Jaeger's search finds them, once there are as many.

    Raises:
        LabvoiceError: There are not as many in time.
    """
    asked = {"service": "labvoice", "tags": f'{{"session.id":"{session}"}}', "limit": "5000"}
    asked |= {"lookback": "custom", "start": "0", "end": str(2**53)}
    found: list[dict[str, Any]] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(round(_KEPT_TIMEOUT_S / _POLL_S)):
            answer = await client.get(f"{jaeger.query}/api/traces", params=asked)
            answer.raise_for_status()
            found = answer.json()["data"]
            if len(found) >= count:
                return found
            await asyncio.sleep(_POLL_S)
    raise LabvoiceError(f"Jaeger finds {len(found)} of {count} calls", "its log is `jaeger.log`")


def differences(traces: Sequence[dict[str, Any]], spans: Sequence[ReadableSpan]) -> list[str]:
    """Returns in which way traces are not the spans that were sent, a sentence each."""
    there = {each["spanID"]: each for trace in traces for each in trace["spans"]}
    found = [
        f"Jaeger has a span {name!r} that was not sent"
        for name in set(there) - {f"{span.context.span_id:016x}" for span in spans}
    ]
    for span in spans:
        kept = there.get(f"{span.context.span_id:016x}")
        if kept is None:
            found.append(f"{span.name} is missing")
            continue
        assert span.start_time is not None
        assert span.end_time is not None
        sent = {
            "traceID": f"{span.context.trace_id:032x}",
            "operationName": span.name,
            "startTime": span.start_time // 1000,
            "duration": (span.end_time - span.start_time) // 1000,
            "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
            "marks": sorted((event.timestamp // 1000, event.name) for event in span.events),
        }
        got = {name: kept.get(name) for name in sent} | {
            "parent": next((each["spanID"] for each in kept["references"]), None),
            "marks": sorted(
                (log["timestamp"], field["value"])
                for log in kept["logs"]
                for field in log["fields"]
                if field["key"] == "event"
            ),
        }
        attributes = {tag["key"]: tag["value"] for tag in kept["tags"]}
        sent |= {f"attribute {name}": value for name, value in (span.attributes or {}).items()}
        got |= {f"attribute {name}": attributes.get(name) for name in span.attributes or {}}
        found += [
            f"{span.name}: {name} is {got[name]!r}, and {value!r} was sent"
            for name, value in sent.items()
            if got[name] != value
        ]
    return found


async def check(path: Path, *, keep: bool = False) -> int:
    """Sends a run, and prints what Jaeger makes of it; returns 1 where that is not the run."""
    run = Run.load(path)
    built = await asyncio.to_thread(program)
    with tempfile.TemporaryDirectory() as folder:
        async with running(built, Path(folder)) as jaeger:
            sent = await asyncio.to_thread(send, run, jaeger.otlp, words=True)
            traces = await traces_in(jaeger, run.header.run_id, len(run.clicks))
            spans = spans_of(run, words=True)
            wrong = differences(traces, spans)
            facts = sum(len(span.attributes or {}) for span in spans)
            for words in wrong:
                print(f"NOT OK: {words}")
            print(
                f"{'NOT OK' if wrong else 'ok'}: Jaeger {built.parent.name} has "
                f"{len(traces)} traces of {len(run.clicks)} calls, "
                f"{sum(len(trace['spans']) for trace in traces)} of {sent.spans} spans, "
                f"{facts} attributes were compared"
            )
            if keep:
                print(f"{jaeger.query}/search?service=labvoice; press Enter to stop it", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
    return 1 if wrong else 0


def main() -> int:
    """Checks the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--keep", action="store_true", help="let Jaeger run until Enter is pressed")
    given = parser.parse_args()
    return asyncio.run(check(given.run, keep=given.keep))


if __name__ == "__main__":
    sys.exit(main())
