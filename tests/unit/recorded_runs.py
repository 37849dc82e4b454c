"""Runs made of synthetic marks, for tests of what is pure logic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter

HOST: dict[str, Any] = {
    "cpu": "Example CPU @ 2.5 GHz",
    "cores": 2,
    "memory_bytes": 8 * 2**30,
    "load_1m": 0.3,
    "os": "Linux 6.1 x86_64",
    "python": "3.11.9",
    "versions": {"labvoice": "0.1.0", "livekit-agents": "1.8.9", "livekit-server": "1.13.5"},
}

# Seconds after the click, and how much each instant scatters.
_CONNECTION = {
    "token_issued": (0.002, 0.0005),
    "room_connected": (0.118, 0.012),
    "mic_published": (0.171, 0.015),
    "dispatch_requested": (0.006, 0.0005),
    "dispatch_acknowledged": (0.0105, 0.0005),
    "job_received": (0.212, 0.004),
    "job_accepted": (0.214, 0.004),
    "job_assigned": (0.219, 0.004),
    "process_assigned": (0.223, 0.005),
    "entrypoint_started": (0.226, 0.005),
    "agent_connected": (0.318, 0.02),
    "agent_track_published": (0.352, 0.02),
    "agent_visible": (0.361, 0.02),
    "agent_audio_subscribed": (0.394, 0.02),
    "session_started": (0.482, 0.03),
    "agent_listening": (0.497, 0.03),
    "greeting_heard": (0.914, 0.06),
}
_WORKER = {
    "job_received",
    "job_accepted",
    "job_assigned",
    "process_assigned",
    "entrypoint_started",
    "agent_connected",
    "agent_track_published",
    "session_started",
}
_AGENT = {
    "end_of_turn_delay": (0.31, 0.02),
    "transcription_delay": (0.17, 0.02),
    "on_user_turn_completed_delay": (0.0004, 0.0001),
    "llm_node_ttft": (0.203, 0.004),
    "llm_node_ttfs": (0.43, 0.03),
    "tts_node_ttfb": (0.09, 0.012),
    "playback_latency": (0.021, 0.004),
}
_SAID = ("What is the capital of France?", "How far away is the moon?", "Tell me a short story.")
_REPLY = "The answer is quite simple, and I am happy to tell you about it."


def connect_run(
    path: Path,
    *,
    trials: int = 30,
    slower: float = 1.0,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    slower_arm: float = 1.0,
    failures: Mapping[int, str] | None = None,
    host: Mapping[str, Any] = HOST,
    seed: int = 7,
) -> Run:
    """Records connections; the trials take the arms in turn, the second `slower_arm` times."""
    rng = np.random.default_rng(seed)
    failures = failures or {}
    with RunWriter(
        path,
        kind="connect",
        config={"command": f"labvoice bench connect --trials {trials}", "trials": trials},
        arms=arms,
        host_facts=host,
    ) as writer:
        names = list(arms or {"default": {}})
        for trial in range(trials + 1):
            arm = names[trial % len(names)]
            writer.trial(trial, f"lab-{trial:03d}", arm, warmup=trial == 0)
            factor = slower * (slower_arm if arm != names[0] else 1.0)
            writer.mark(trial, Mark("click", 100.0 + trial))
            for mark, (after_s, scatter_s) in _CONNECTION.items():
                if trial in failures and mark not in ("token_issued", "dispatch_requested"):
                    continue
                at = 100.0 + trial + factor * max(after_s / 2, rng.normal(after_s, scatter_s))
                if mark in _WORKER:
                    writer.mark(trial, Mark(mark, at, clock="worker", uncertainty_s=0.0012))
                else:
                    writer.mark(trial, Mark(mark, at))
            writer.note(trial, worker_id="AW_example", clock_offset_s=0.0004)
            writer.outcome(trial, failures.get(trial, "ok"))
    return Run.load(path)


def turns_run(
    path: Path,
    *,
    calls: int = 5,
    turns: int = 4,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    faster_arm_s: float = 0.0,
    failures: Mapping[tuple[int, int], str] | None = None,
    said: str | None = None,
    seed: int = 11,
) -> Run:
    """Records calls of several turns each; the arms take turns."""
    rng = np.random.default_rng(seed)
    failures = failures or {}
    names = list(arms or {"default": {}})
    with RunWriter(
        path,
        kind="turns",
        config={"command": f"labvoice bench turns --trials {calls} --llm paced", "llm": "paced"},
        arms=arms,
        host_facts=HOST,
    ) as writer:
        for trial in range(calls):
            zero = 500.0 + 60 * trial
            arm = names[trial % len(names)]
            writer.trial(trial, f"lab-{trial:03d}", arm)
            writer.mark(trial, Mark("click", zero))
            writer.mark(trial, Mark("dispatch_requested", zero + 0.004))
            writer.mark(trial, Mark("agent_listening", zero + rng.normal(0.5, 0.02)))
            writer.outcome(trial, "ok")
            mood_s = rng.normal(0, 0.03) - (faster_arm_s if arm != names[0] else 0.0)
            for turn in range(turns):
                begin = zero + 2 + 12 * turn
                end = begin + rng.normal(1.9, 0.2)
                sentence = said or _SAID[turn % len(_SAID)]
                writer.mark(trial, Mark("user_speech_start", begin), turn=turn)
                writer.mark(trial, Mark("user_speech_end", end), turn=turn)
                failed = failures.get((trial, turn))
                if failed is None:
                    agent = {
                        name: max(0.0001, rng.normal(mean, scatter))
                        for name, (mean, scatter) in _AGENT.items()
                    }
                    e2e = (
                        agent["end_of_turn_delay"]
                        + agent["llm_node_ttfs"]
                        + agent["tts_node_ttfb"]
                        + agent["playback_latency"]
                        - 0.07
                        + mood_s
                    )
                    reply = end + e2e + rng.normal(0.26, 0.01)
                    writer.mark(trial, Mark("reply_heard", reply), turn=turn)
                    for name, duration_s in {**agent, "e2e_latency": e2e}.items():
                        writer.stage(trial, name, duration_s, turn=turn)
                    writer.note(trial, turn, transcript=sentence, reply=_REPLY, wer=0.0)
                writer.note(trial, turn, said=sentence)
                writer.outcome(trial, failed or "ok", turn=turn)
    return Run.load(path)


def interrupt_run(path: Path, *, rounds: int = 4, arms: tuple[str, ...] = ("default",)) -> Run:
    """Records probes of turn-taking; the first arm stops at everything, further ones at nothing.

    The last interruption of the first arm is never answered.
    """
    kinds = {
        "question": "interruption",
        "backchannel": "backchannel",
        "cough": "vocal_tic",
        "pause": "pause",
    }
    config = {"command": "labvoice bench interrupt", "probes": list(kinds)}
    with RunWriter(
        path, kind="interrupt", config=config, arms={arm: {} for arm in arms}, host_facts=HOST
    ) as writer:
        number = 0
        for round_number in range(rounds * len(kinds)):
            probe = list(kinds)[round_number % len(kinds)]
            kind = kinds[probe]
            for arm in arms:
                writer.trial(number, f"lab-{number:03d}", arm, round_number=round_number)
                zero, begin = 500.0 + 60 * number, 510.0 + 60 * number
                writer.mark(number, Mark("click", zero))
                writer.mark(number, Mark("agent_listening", zero + 0.5))
                writer.outcome(number, "ok")
                stops = arm == arms[0] and kind != "pause"
                hangs = (
                    stops and kind == "interruption" and round_number // len(kinds) == rounds - 1
                )
                facts: dict[str, Any] = {"probe": probe, "kind": kind, "sound": "synthesised"}
                facts |= {"source": "signal", "said": probe, "over_agent": kind != "pause"}
                facts |= {"hang": hangs, "caller_spoke": [[-5.0, -3.0], [0.0, 1.0]]}
                facts["yielded_after_s"] = 0.6 if stops else None
                facts["agent_spoke"] = [[-2.0, 0.6 if stops else 3.0]]
                facts["agent_goes_on"] = not stops
                if kind == "pause":
                    facts["cut"] = False
                if kind == "interruption":
                    facts["answers"] = stops and not hangs
                    writer.mark(number, Mark("interruption_start", begin), turn=0)
                    writer.mark(number, Mark("interruption_end", begin + 1.0), turn=0)
                    if stops:
                        writer.mark(number, Mark("agent_yielded", begin + 0.6), turn=0)
                    if stops and not hangs:
                        writer.mark(number, Mark("new_reply_heard", begin + 2.1), turn=0)
                        facts["agent_spoke"] += [[2.1, 4.0]]
                writer.stage(number, "overlap", 0.6, turn=0, source="caller")
                writer.note(number, 0, **facts)
                detail = "stopped after 600 ms, then nothing" if hangs else ""
                writer.outcome(number, "no_reply" if hangs else "ok", turn=0, detail=detail)
                number += 1
    return Run.load(path)
