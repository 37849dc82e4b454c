"""Measures what loading, summarising and plotting a large run costs.

`python benchmarks/million_turns.py 1000000` writes such a run (calls of ten turns, the marks and
the outcome of each) to a temporary folder, and prints seconds and the peak memory of each step,
without the copy in columns and with it. A run that labvoice records has its copy as soon as it
ends; a run file that comes from elsewhere has none.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labvoice.report import plots
from labvoice.runs import copies
from labvoice.runs.run import Run

_TURNS = 10


def write(path: Path, turns: int) -> None:
    """Writes a run of so many turns, as the writer does, without a flush for each line."""
    header = {
        "type": "run",
        "format": 1,
        "run_id": "large",
        "kind": "turns",
        "started_at": "2026-01-01T00:00:00+00:00",
        "loop": "closed",
        "config": {},
        "arms": {"default": {}},
        "host": {},
    }
    latency_s = np.random.default_rng(0).normal(1, 0.1, turns)
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header, separators=(",", ":")) + "\n")
        for turn in range(turns):
            trial, of_call = divmod(turn, _TURNS)
            if not of_call:
                file.write(
                    f'{{"type":"trial","trial":{trial},"room":"room-{trial}","arm":"default",'
                    f'"warmup":false,"unit":"{trial}","round":null}}\n'
                    f'{{"type":"outcome","trial":{trial},"turn":null,"outcome":"ok","detail":""}}\n'
                )
            of_turn = f'"trial":{trial},"turn":{of_call}'
            begin_s = 10.0 * turn
            for mark, at_s in (
                ("user_speech_start", begin_s),
                ("user_speech_end", begin_s + 2),
                ("reply_heard", begin_s + 2 + latency_s[turn]),
            ):
                file.write(
                    f'{{"type":"mark",{of_turn},"mark":"{mark}","t_s":{at_s},"clock":"caller",'
                    '"uncertainty_s":0.0}\n'
                )
            file.write(f'{{"type":"outcome",{of_turn},"outcome":"ok","detail":""}}\n')
        file.write('{"type":"end"}\n')


def measure(path: Path) -> None:
    """Prints what each step costs in a process of its own, for a peak of its own."""
    loaded: list[Run] = []
    whole_s = time.perf_counter()
    steps: dict[str, Callable[[], object]] = {
        "load": lambda: loaded.append(Run.load(path)),
        "summary": lambda: loaded[0].summary(),
        "plot": lambda: plots.distributions(loaded[0])._repr_png_(),
        "warnings": lambda: loaded[0].warnings,
    }
    for name, step in steps.items():
        begun_s, processor_s = time.perf_counter(), time.process_time()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{name}: {time.perf_counter() - begun_s:.2f} s, "
            f"{time.process_time() - processor_s:.2f} s of processor, peak {peak} MiB",
            flush=True,
        )
    print(f"in all {time.perf_counter() - whole_s:.2f} s", flush=True)


def main() -> None:
    """Measures each step, without the copy in columns and with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        write(path, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
        for name in ("from the run file", "from its copy"):
            print(f"\n{name}", flush=True)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(path,))
            process.start()
            process.join()
            copies.make(path)


if __name__ == "__main__":
    main()
