"""The lab as its user meets it: parts, looks, benchmarks, ends."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager
from livekit import api, rtc
from pydantic import SecretStr

from labvoice.dispatch.tokens import caller_token
from labvoice.errors import LabvoiceError, ProcessError, StageTimeoutError, UsageError
from labvoice.lab import Lab
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CONNECTION_STAGES,
    TRANSPORT,
    TURN_STAGES,
)
from labvoice.report.html import write_report
from labvoice.runs.run import Run
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import Utterance
from tests.stack.talking import LISTENS


@pytest.mark.smoke
def test_every_part_shows_state_address_and_pid(lab: Lab) -> None:
    """Text and HTML show the same parts, each with its state, address, pid and memory."""
    parts = lab.parts()  # other tests may have added workers
    assert [part.name.split()[0] for part in parts][:3] == ["LiveKit", "model", "worker-1"]
    for part in parts:
        assert part.state == "up"
        assert part.pid is not None
        assert psutil.pid_exists(part.pid)
        assert part.memory_bytes
        for shown in (repr(lab), lab._repr_html_()):
            assert part.address in shown
            assert str(part.pid) in shown


@pytest.mark.smoke
def test_no_secret_shows(lab: Lab) -> None:
    """Neither the lab's looks nor any process's arguments hold the LiveKit secret."""
    assert lab.settings.livekit_api_secret
    secret = lab.settings.livekit_api_secret.get_secret_value()
    arguments = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert arguments
    for text in (repr(lab), lab._repr_html_(), repr(lab.settings), *arguments):
        assert secret not in text


def test_plain_with_is_refused_with_a_message() -> None:
    """`with Lab()` says that `async with` is meant."""
    with pytest.raises(UsageError, match="async with"), Lab():
        pass


async def test_a_lab_that_does_not_run_says_so() -> None:
    """Using a lab before its start names the way to start it."""
    with pytest.raises(LabvoiceError, match=r"await lab\.start"):
        await Lab().call()


async def test_a_lab_is_started_again_after_its_stop_and_after_a_failed_start(
    tmp_path: Path,
) -> None:
    """Each start begins with what the user set, and with nothing of the servers before."""
    lab = Lab(llm="paced", letta=False, workers=0, data_dir=tmp_path)
    asked_for = lab.settings.model_copy()
    addresses = []
    for _ in range(2):
        await lab.start()
        addresses.append(lab.settings.livekit_url)
        assert lab.stack.server is not None
        # Its own server, not the dead one as somebody's:
        assert lab.stack.server.version is not None
        listed = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
        assert list(listed.rooms) == []
        await lab.stop()
        assert not lab.running
        assert lab.settings == asked_for
    assert None not in addresses

    lab.settings.livekit_url, lab.settings.livekit_api_key = "ws://127.0.0.1:9", "key"
    lab.settings.livekit_api_secret = SecretStr("secret" * 8)
    with pytest.raises(LabvoiceError):
        await lab.start()
    assert not lab.running


@pytest.mark.smoke
async def test_a_bench_of_connections_is_a_tidy_frame(lab: Lab, tmp_path: Path) -> None:
    """Warm-up and trials are recorded, every headline stage has its duration, and it reports."""
    run = await lab.bench.connect(2, out=tmp_path / "connect.jsonl")
    frame = run.frame
    assert {"run_id", "trial", "room", "turn", "stage", "start_s", "duration_s", "outcome"} <= set(
        frame.columns
    )
    assert {stage.name for stage in CONNECTION_STAGES} <= set(frame["stage"])
    assert frame["warmup"].sum() == len(frame) / 3
    assert set(frame["llm"]) == {"paced"}  # what answered, not the default
    assert set(frame["outcome"]) == {"ok"}
    assert (frame["duration_s"] > 0).all()
    result = run.to_json()
    assert result["n"] == 2
    assert result["failed"] == 0
    assert Run.load(tmp_path / "connect.jsonl").to_json() == result


async def test_a_call_that_goes_on_holds_up_no_bench(lab: Lab) -> None:
    """As README's example has one open: it is not waited for, the next call's job is."""
    async with lab.call() as call:
        with pytest.raises(StageTimeoutError, match=f"runs 1 job .room {call.room_name}, "):
            await lab.pool.wait_idle(2.0)
        await lab.wait_idle(30.0)


async def test_a_call_of_somebody_elses_holds_up_no_bench(lab: Lab) -> None:
    """As one in a browser, to agents of two programs: both may go on, another job may not."""
    await lab.add_workers(agent_name="other", program="labvoice.agent.noop")
    own, room = lab.settings.agent_name, f"open-{secrets.token_hex(4)}"
    url, key, secret = lab.settings.livekit
    guest = rtc.Room()
    await guest.connect(url, caller_token(key, secret, room, "eve"))
    try:
        for name in (own, "other"):
            await lab.dispatch(room, name)
        with pytest.raises(StageTimeoutError):
            await lab.pool.wait_idle(2.0)
        await lab.wait_idle(30.0)
        await lab.dispatch(f"{room}-empty", "other")
        with pytest.raises(StageTimeoutError):
            await lab.wait_idle(2.0)
    finally:
        await guest.disconnect()


@LISTENS
async def test_a_bench_of_turns_explains_the_ear_by_the_agents_stages(
    lab: Lab, recorded: list[Utterance], tmp_path: Path
) -> None:
    """Each turn has voice_to_voice, LiveKit's stages, and the rest as transport."""
    run = await lab.bench.turns(
        1, turns=2, warmup=0, utterances=recorded, out=tmp_path / "turns.jsonl"
    )
    turns = run.frame[run.frame["turn"].notna()].pivot(
        index="turn", columns="stage", values="duration_s"
    )
    assert len(turns) == 2
    assert {TURN_STAGES[0].name, TRANSPORT, *AGENT_TURN_STAGES} <= set(turns.columns)
    rest = turns["voice_to_voice"] - turns["e2e_latency"] - turns[TRANSPORT]
    assert (rest.abs() < 1e-6).all()
    report = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert run.header.run_id in report
    assert recorded[0].text.split(",")[0] in report


@LISTENS
async def test_a_bench_of_endpointing_counts_split_turns_by_arm(lab: Lab, tmp_path: Path) -> None:
    """Each is an arm whose worker waits so; a caller on a bad line in a loud room is understood."""
    sounds = {"": Conditions("street", 20, "telephone", echo_db=40)}
    for number in range(3):  # up to twice more where the machine's stalls upset its only turn
        out = tmp_path / f"endpointing-{number}.jsonl"
        run = await lab.bench.endpointing(
            1, arms="silence:0.6", conditions=sounds, warmup=0, out=out
        )
        if run.turn_ends:
            break
    frame = run.frame
    assert set(frame["min_endpointing_delay_s"]) == {0.6}
    assert set(frame["voice"]) == {"noise street at 20 dB, telephone, echo at -40 dB"}
    assert frame.loc[frame["stage"] == "end_of_turn_delay", "duration_s"].min() >= 0.6
    (point,) = run.turn_ends["silence:0.6"]
    assert point.turns == 1
    assert point.delay_s >= 0.6


async def test_a_bench_keeps_its_failures(lab: Lab, tmp_path: Path) -> None:
    """A trial that fails is in the frame with its outcome, and the run counts it."""
    good_name = lab.settings.agent_name
    lab.settings.agent_name = "nobody"
    try:
        run = await lab.bench.connect(1, warmup=0, out=tmp_path / "failed.jsonl")
    finally:
        lab.settings.agent_name = good_name
    assert run.to_json()["outcomes"] == {"name_mismatch": 1}
    assert run.to_json()["failed"] == 1


async def test_a_worker_whose_model_does_not_load_ends_the_start(tmp_path: Path) -> None:
    """A recogniser that cannot be loaded is named, and everything is stopped again."""
    lab = Lab(llm="paced", letta=False, workers=1)
    before = set(psutil.Process().children(recursive=True))
    lab.settings.deepgram_api_key = None
    lab.settings.greeting = "…"  # no phonemes in it, so the voice has nothing to say
    broken = lab.settings.model_copy(update={"cache_dir": tmp_path})
    with pytest.raises(ProcessError, match="cannot load its models"):
        await _start_worker_without_weights(lab, broken, tmp_path)
    after = {p for p in psutil.Process().children(recursive=True) if p.is_running()}
    assert after <= before


async def _start_worker_without_weights(lab: Lab, broken: object, state_dir: Path) -> None:
    from labvoice.settings import Settings
    from labvoice.stack.livekit.server import LiveKitServer
    from labvoice.stack.workers.worker import Worker

    assert isinstance(broken, Settings)
    server = await LiveKitServer.start(lab.settings, state_dir=state_dir)
    try:
        (state_dir / "weights").write_text("a file where a folder should be", encoding="utf-8")
        await Worker.start(
            broken.model_copy(
                update={
                    "livekit_url": server.url,
                    "livekit_api_key": server.api_key,
                    "livekit_api_secret": server.api_secret,
                }
            ),
            state_dir=state_dir,
        )
    finally:
        await server.stop()


_LAB_SCRIPT = """
import asyncio
from labvoice.lab import Lab
async def main():
    async with Lab(llm="paced", letta=False, workers=1) as lab:
        print(*(part.pid for part in lab.parts()), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.smoke
async def test_nothing_outlives_its_lab() -> None:
    """After a crash of the parent, every process of the lab is gone."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _LAB_SCRIPT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    pids = processes_of_a_lab((await parent.stdout.readline()).decode())
    parent.kill()
    await parent.wait()
    assert await alive(pids) == []


async def test_nothing_outlives_a_kernel_that_is_restarted() -> None:
    """Jupyter's Restart ends every process of the lab that the notebook's kernel had started."""
    kernel = AsyncKernelManager()
    await kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        printed: list[str] = []
        reply = await client.execute_interactive(
            "from labvoice.lab import Lab\n"
            "lab = await Lab(llm='paced', letta=False, workers=1).start()\n"
            "print('pids', *(part.pid for part in lab.parts()))",
            timeout=120,
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
        )
        assert reply["content"]["status"] == "ok", printed
        text = "".join(printed)
        pids = processes_of_a_lab(text[text.index("pids") + 4 :].splitlines()[0])
        await kernel.restart_kernel()
        assert await alive(pids) == []
    finally:
        client.stop_channels()
        await kernel.shutdown_kernel(now=True)


def processes_of_a_lab(printed: str) -> list[int]:
    """Process ids of three parts and of what these have started, a worker's warm process say."""
    parts = [int(word) for word in printed.split()]
    assert len(parts) == 3
    warm = [child.pid for pid in parts for child in psutil.Process(pid).children(recursive=True)]
    assert warm
    return parts + warm


async def alive(pids: list[int]) -> list[psutil.Process]:
    """Those of the processes that do not end within 20 s."""
    there = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return (await asyncio.to_thread(psutil.wait_procs, there, 20))[1]


@LISTENS
async def test_stock_agents_are_arms(lab: Lab, recorded: list[Utterance], tmp_path: Path) -> None:
    """Both stock agents answer, on a busy machine too; ratios are against the better one."""
    run = await lab.bench.turns(
        1,
        arms="stock,stock-naive",
        utterances=recorded[:1],
        warmup=0,
        out=tmp_path / "stock.jsonl",
    )
    outcomes = run.outcomes.groupby("arm")["outcome"].agg(set).to_dict()
    assert outcomes == {"stock": {"ok"}, "stock-naive": {"ok"}}, run.outcomes
    (other,) = {"stock", "stock-naive"} - {run.base}
    assert set(run.ratios()) == {f"{other}/{run.base}"}
