"""The callers of the load bench: what runs on a Dask worker."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import SecretStr

from labvoice.agent._livekit import keep_native_log
from labvoice.bench.base import connect_and_greet, trial
from labvoice.bench.facts import ending_facts
from labvoice.bench.turns import said_in, take_turn
from labvoice.caller.call import Call
from labvoice.caller.connection import late_rooms_left
from labvoice.caller.recorder import Recorder
from labvoice.caller.turns import Turn
from labvoice.choices import RecordingFormat
from labvoice.dispatch import Dispatcher
from labvoice.lab import import_for_calls
from labvoice.link.client import Relays
from labvoice.link.impairment import LinkProfile
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.load import KIND
from labvoice.runs.run import RunWriter
from labvoice.runs.statistics import percentile
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import Pcm, Utterance
from labvoice.stack.livekit.server import http_address

_LAG_EVERY_S: Final = 0.02


class Planned(NamedTuple):
    """What one caller of a level is to do, in seconds since the level's begin.

    Attributes:
        click_s: Intended start of the call.
        turns_s: Intended start of each utterance.
    """

    click_s: float
    turns_s: tuple[float, ...]


@dataclass(frozen=True)
class Agent:
    """Whom the callers call, and where."""

    url: str
    api_key: str
    api_secret: SecretStr
    name: str
    greets: bool | None
    greeting_timeout_s: float


class Sounds(NamedTuple):
    """What the callers of a level say, and how.

    Attributes:
        utterances: What they say, in rotation.
        conditions: How they sound; as the utterances are where None.
        around: What is around them; None where nothing is said of it.
    """

    utterances: Sequence[Utterance]
    conditions: Conditions | None
    around: Pcm | None


@dataclass(frozen=True)
class Order:
    """What one Dask worker does in a level.

    Attributes:
        begin_s: On the Dask worker's own monotonic clock.
        rests: Whether the callers send nothing between two utterances.
    """

    agent: Agent
    arm: str
    warmup: bool
    begin_s: float
    callers: Sequence[tuple[int, Planned]]
    sounds: Sounds
    link: LinkProfile | None
    rests: bool


class Heard(NamedTuple):
    """What both sides of a call said.

    Attributes:
        click_s: Its intended start, on the clock of the recorder.
    """

    trial: int
    click_s: float
    recorder: Recorder


class Sound(NamedTuple):
    """An encoded recording.

    Attributes:
        start_s: Its first sample, in seconds since the call's intended start.
    """

    trial: int
    start_s: float
    content: bytes


class Called(NamedTuple):
    """The calls of one Dask worker; they stay there until what is needed of them is asked for.

    Attributes:
        text: The lines of what was recorded.
        heard: A recorder for each call.
    """

    text: str
    heard: list[Heard]


def ready() -> None:
    """Imports on a Dask worker what would otherwise be imported in the first call.

    The SDK's log is silent there: a call that fails is recorded with its cause.
    """
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    os.environ.setdefault("RUST_LOG", "off")  # of the SDK's native side
    import_for_calls()
    keep_native_log()


def call_out(order: Order) -> Called:
    """Makes the calls of one Dask worker."""
    with tempfile.TemporaryDirectory(prefix="labvoice-callers-") as folder:
        path = Path(folder) / "callers.jsonl"
        heard = asyncio.run(_calls(order, path, Relays(Path(folder))))
        lines = path.read_text(encoding="utf-8").splitlines()
    return Called("\n".join(lines[1:-1]), heard)  # without the run's own first and last line


def text_of(called: Called) -> str:
    """Returns the lines of what calls recorded."""
    return called.text


def sounds_of(called: Called, format_: RecordingFormat) -> list[Sound]:
    """Encodes the recordings of calls that are over; meanwhile the Dask worker can make none."""
    return [
        Sound(each.trial, recording.start_s - each.click_s, recording.encoded(f".{format_}"))
        for each in called.heard
        if (recording := each.recorder.recording()) is not None
    ]


async def _calls(order: Order, path: Path, relays: Relays) -> list[Heard]:
    agent = order.agent
    heard: list[Heard] = []
    lags: list[float] = []
    async with (
        relays,
        Dispatcher(agent.url, agent.api_key, agent.api_secret) as dispatcher,
    ):
        with RunWriter(path, kind=KIND, loop="open", arms={order.arm: {}}, host_facts={}) as run:
            watching = asyncio.create_task(_watch_loop(lags))
            try:
                async with asyncio.TaskGroup() as group:
                    for number, planned in order.callers:
                        caller = _caller(run, dispatcher, relays, order, number, planned, heard)
                        group.create_task(caller)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await late_rooms_left()
            for number, _ in order.callers:
                run.note(number, loop_lag_s=percentile(lags, 99) if lags else 0.0)
    return heard


async def _watch_loop(lags: list[float]) -> None:
    """Notes how much later than asked for the event loop comes back, in seconds."""
    while True:
        due_s = time.monotonic() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        lags.append(max(0.0, time.monotonic() - due_s))


async def _caller(
    run: RunWriter,
    dispatcher: Dispatcher,
    relays: Relays,
    order: Order,
    number: int,
    planned: Planned,
    heard: list[Heard],
) -> None:
    """One caller of a level; what it measures counts from the intended starts."""
    agent, click_s = order.agent, order.begin_s + planned.click_s
    late_s = 0.0

    def on_mark(mark: Mark) -> None:
        this.mark(dataclasses.replace(mark, at_s=click_s) if mark.name == "click" else mark)

    def on_turn_mark(turn: Turn, mark: Mark) -> None:
        intended = mark.name in ("user_speech_start", "user_speech_end")
        at_s = mark.at_s - late_s if intended else mark.at_s
        run.mark(number, dataclasses.replace(mark, at_s=at_s), turn=turn.number)

    call = Call(
        url=agent.url,
        api_key=agent.api_key,
        api_secret=agent.api_secret,
        dispatcher=dispatcher,
        room=f"load-{secrets.token_hex(6)}",
        identity=f"caller-{secrets.token_hex(4)}",
        agent_name=agent.name,
        greets=agent.greets,
        greeting_timeout_s=agent.greeting_timeout_s,
        on_mark=on_mark,
        open_link=None
        if order.link is None
        else functools.partial(relays.open, http_address(agent.url), order.link, number=number),
    )
    call.media.microphone.rests = order.rests
    sounds = order.sounds
    if sounds.conditions is not None and sounds.around is not None:
        call.sound_like(sounds.conditions, sounds.around)
    said = said_in(sounds.utterances, number, len(planned.turns_s))
    async with trial(
        run,
        number,
        call.room_name,
        order.arm,
        round_number=0,
        warmup=order.warmup,
        said=[utterance.text for utterance in said],
    ) as this:
        call.on_turn_mark = on_turn_mark
        try:
            await call.media.open()  # its relay is no part of the connection
            await _until(click_s)
            this.note(caller_late_s=time.monotonic() - click_s)
            await connect_and_greet(this, call)
            for turn, (after_s, utterance) in enumerate(zip(planned.turns_s, said, strict=True)):
                due_s = order.begin_s + after_s
                waited = await _until(due_s)
                late_s = max(0.0, time.monotonic() - due_s)
                # One that still heard the last reply is late for the agent's sake, not its own.
                this.note(turn, late_s=late_s, caller_late_s=late_s if waited else 0.0)
                await take_turn(this, call, utterance)
        finally:
            await call.end()
            this.note(**ending_facts(call))
            heard.append(Heard(number, click_s, call.recorder))


async def _until(at_s: float) -> bool:
    """Sleeps until a monotonic instant; returns whether there was anything to wait for."""
    wait_s = at_s - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)
    return wait_s > 0
