"""Calibration: what the caller reads for a reply whose delay is known, and so what it adds."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from livekit import api, rtc
from pydantic import SecretStr

from labvoice.bench.arms import Arm
from labvoice.bench.base import RunOptions, Trial, call_trial, host_facts
from labvoice.caller.call import Call
from labvoice.caller.ear import Listener
from labvoice.caller.microphone import SAMPLE_RATE_HZ, Microphone
from labvoice.errors import LabvoiceError, ServerUnreachableError, StageTimeoutError
from labvoice.protocol.vocabulary import CALIBRATION_STAGES, Mark
from labvoice.runs.run import Run, RunWriter
from labvoice.speech.utterances import Pcm, Utterance

if TYPE_CHECKING:
    from labvoice.lab import Lab

_AGENT_NAME: Final = "reference-agent"
_ARM: Final = Arm("default", agent_name=_AGENT_NAME)
_TONE_HZ: Final = 440.0
_TONE_S: Final = 0.6
_AMPLITUDE: Final = 0.25
DELAYS_S: Final = (0.5, 0.7, 0.9, 1.2)
"""Delays of the reference's replies, in turn; all above the 0.4 s of silence by which a listener
knows that a voice has ended."""
_TOKEN_LIFETIME: Final = datetime.timedelta(minutes=10)
_JOIN_TIMEOUT_S: Final = 10.0
_SILENCE_S: Final = 0.5
_POLL_S: Final = 0.05
_REPLY_TIMEOUT_S: Final = 5.0


class _Reply(NamedTuple):
    """When the reference heard the caller's last voiced sample, and when its own first one left."""

    heard_s: float
    left_s: float


def tone() -> Pcm:
    """Returns a tone with hard edges, whose beginning and end are exact."""
    seconds = np.arange(int(_TONE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    wave = _AMPLITUDE * np.sin(2 * np.pi * _TONE_HZ * seconds)
    return np.asarray(wave * np.iinfo(np.int16).max, np.int16)


class _ReferenceAgent:
    """An agent that answers each tone with a tone, a known time after it heard the end of it.

    It has a connection of its own to the server, but lives in the caller's process: so both
    ends are on one clock, and nothing about the clocks has to be believed.
    """

    def __init__(self) -> None:
        self.delay_s = DELAYS_S[0]
        self.replies: list[_Reply] = []
        self._room = rtc.Room()
        self._microphone = Microphone()
        self._listener = Listener(self._on_voice)
        self._answered = 0
        self._answers: set[asyncio.Task[None]] = set()

    async def join(self, url: str, key: str, secret: SecretStr, room: str) -> None:
        def on_track(
            track: rtc.Track, _: rtc.RemoteTrackPublication, __: rtc.RemoteParticipant
        ) -> None:
            self._listener.listen(track)

        self._room.on("track_subscribed", on_track)
        token = (
            api.AccessToken(key, secret.get_secret_value())
            .with_kind("agent")
            .with_identity(_AGENT_NAME)
            .with_attributes({"lk.agent.name": _AGENT_NAME, "lk.agent.state": "listening"})
            .with_grants(api.VideoGrants(room_join=True, room=room, agent=True))
            .with_ttl(_TOKEN_LIFETIME)
        )
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await self._room.connect(url, token.to_jwt())
                await self._microphone.publish(self._room)
        except (rtc.ConnectError, TimeoutError) as error:
            raise ServerUnreachableError(
                f"the reference agent cannot connect to {url}: {error or 'no answer'}",
                "check that the server runs and that its RTC ports can be reached",
            ) from None

    def _on_voice(self) -> None:
        ended = [voice for voice in self._listener.voices if voice.ended]
        for voice in ended[self._answered :]:
            task = asyncio.create_task(self._answer(voice.end_s))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        self._answered = len(ended)

    async def _answer(self, heard_s: float) -> None:
        await asyncio.sleep(heard_s + self.delay_s - asyncio.get_running_loop().time())
        samples = tone()
        left_s, _ = await self._microphone.play(samples, 0, len(samples) - 1)
        self.replies.append(_Reply(heard_s, left_s))

    async def hear_silence(self) -> None:
        """Waits until the caller's silence was heard for a while, from which the tone stands out.

        Raises:
            StageTimeoutError: Nothing is heard of the caller.
        """
        until_s = time.monotonic() + _JOIN_TIMEOUT_S
        while self._listener.heard_s < _SILENCE_S:
            if time.monotonic() > until_s:
                raise StageTimeoutError(
                    "the caller's silence", _JOIN_TIMEOUT_S, "no audio of the caller arrives"
                )
            await asyncio.sleep(_POLL_S)

    def reply_between(self, said_s: float, heard_s: float) -> _Reply:
        for reply in self.replies:
            if said_s <= reply.left_s <= heard_s:
                return reply
        raise LabvoiceError("what was heard is no reply of the reference", "repeat the run")

    async def leave(self) -> None:
        for task in self._answers:
            task.cancel()
        await self._microphone.aclose()
        await self._listener.aclose()
        await self._room.disconnect()


async def calibrate(lab: Lab, trials: int, options: RunOptions) -> Run:
    """Measures the instrument: calls to a reference that answers after a known time.

    Each trial is a call of as many turns as there are delays. In each, `voice_to_voice_error` is
    what the caller read less how long the reference truly took, and `uplink` and `downlink` are
    its two parts: from a sample's leaving one microphone to its being heard at the other end. A
    user's ear has these two ways as well, so they bound the instrument's own error from above;
    how much they scatter is the least difference between two replies that it can tell.

    Args:
        lab: It needs no worker.
        trials: How many calls.
        options: Of the run.

    Raises:
        UsageError: A number makes no sense.
        RunFileError: The run file exists already.
    """
    rounds = options.rounds(trials)
    path = options.path("calibrate")
    config = {
        "command": options.command,
        "trials": trials,
        "warmup": options.warmup,
        "delays_s": list(DELAYS_S),
    }
    facts = await host_facts(lab)
    with RunWriter(path, kind="calibrate", config=config, host_facts=facts) as run:
        for number in range(rounds):
            async with call_trial(
                lab,
                run,
                number,
                _ARM,
                round_number=number,
                warmup=number < options.warmup,
                said=[""] * len(DELAYS_S),
            ) as (this, call):
                this.words = await _calibrate(lab, this, call)
            options.progress(f"calibrate {number + 1}/{rounds}: {this.words}")
    return Run.load(path)


async def _calibrate(lab: Lab, this: Trial, call: Call) -> str:
    settings = lab.settings
    assert settings.livekit_url
    assert settings.livekit_api_key
    assert settings.livekit_api_secret
    reference = _ReferenceAgent()
    try:
        await reference.join(
            settings.livekit_url,
            settings.livekit_api_key,
            settings.livekit_api_secret,
            call.room_name,
        )
        await call.connect()
        await reference.hear_silence()
        this.outcome("ok")
        errors = []
        for delay_s in DELAYS_S:
            reference.delay_s = delay_s
            errors.append(await _turn(this, call, reference))
    finally:
        await reference.leave()
    return "read too much by " + ", ".join(f"{error_s * 1000:.0f} ms" for error_s in errors)


async def _turn(this: Trial, call: Call, reference: _ReferenceAgent) -> float:
    turn = await call.say(Utterance("", tone(), SAMPLE_RATE_HZ, "tone"))
    turn.marks["reply_heard"] = await call.hear_onset(_REPLY_TIMEOUT_S)
    await call.hear_end()
    reply = reference.reply_between(turn.marks["user_speech_end"], turn.marks["reply_heard"])
    uplink_s = reply.heard_s - turn.marks["user_speech_end"]
    downlink_s = turn.marks["reply_heard"] - reply.left_s
    this.run.mark(this.number, Mark("reply_heard", turn.marks["reply_heard"]), turn=turn.number)
    stages = (uplink_s + downlink_s, uplink_s, downlink_s)
    for stage, duration_s in zip(CALIBRATION_STAGES, stages, strict=True):
        this.run.stage(this.number, stage, duration_s, turn=turn.number, source="reference")
    this.outcome("ok", turn=turn.number)
    return stages[0]
