"""Calibration: measures replies of known delay, to find the instrument's own error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
from livekit import rtc
from pydantic import SecretStr

from labvoice.agent._livekit import new_room
from labvoice.bench.arms import SEED, Arm, choose
from labvoice.bench.base import RunKeywords, RunOptions, Trial, measure_calls
from labvoice.bench.instrument import keep_calibration
from labvoice.bench.turns import record_buffer
from labvoice.caller.call import Call
from labvoice.caller.connection import connect_to_end
from labvoice.caller.ear import Listener
from labvoice.caller.microphone import SAMPLE_RATE_HZ, Microphone
from labvoice.caller.wire import PACKET_S, offset_in_packet
from labvoice.concurrency import cancel, poll
from labvoice.dispatch.tokens import agent_token
from labvoice.errors import LabvoiceError, ServerUnreachableError, StageTimeoutError
from labvoice.protocol.vocabulary import (
    CALIBRATION_STAGES,
    INSTRUMENT_ERROR,
    PACKETISATION,
    Mark,
)
from labvoice.runs.run import Run
from labvoice.speech.detection import PEAK_RATIO
from labvoice.speech.utterances import Pcm, Utterance
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from labvoice.lab import Lab

_AGENT_NAME: Final = "reference-agent"
_TONE_HZ: Final = 440.0
_TONE_S: Final = 0.6
_AMPLITUDE: Final = 0.25
DELAYS_S: Final = (0.2, 0.5, 0.8, 1.2, 2.0, 3.0)
"""Delays of the reference's replies, in turn."""
VARIANTS: Final = ("plain", "quiet", "breath", "noise", "music")
"""What the reference's line carries: replies with hard edges, replies that begin quietly, a breath
before each, noise all the time, music all the time."""
_TONE_ENDED_S: Final = 0.06
"""Silence by which the reference knows that a tone has ended: no tone has a gap in it."""
_TONE_LEAST_S: Final = 0.45
_RAMP_S: Final = 0.1
_RAMP_FROM: Final = 0.01
_BREATH_S: Final = 0.1
_BREATH_RMS: Final = 10 ** (-62 / 20)
_NOISE_RMS: Final = 10 ** (-55 / 20)
_MUSIC_RMS: Final = 10 ** (-50 / 20)
_CHORD_HZ: Final = (220.0, 277.2, 329.6)
_BACKGROUND_S: Final = 4
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


class Reply(NamedTuple):
    """A reply of the reference.

    Attributes:
        samples: Mono.
        first: Index of the first voiced sample.
    """

    samples: Pcm
    first: int


def reply_of(variant: str) -> Reply:
    """Returns what the reference answers.

    A reply that begins quietly is voiced from 30 dB below its loudest on, as the ear's rule has it
    (:data:`labvoice.speech.detection.PEAK_RATIO`).
    """
    wave = tone()
    if variant == "quiet":
        ramp = int(_RAMP_S * SAMPLE_RATE_HZ)
        gain = np.ones(len(wave))
        gain[:ramp] = np.geomspace(_RAMP_FROM, 1.0, ramp)
        first = int(np.argmax(gain >= PEAK_RATIO))
        return Reply(np.asarray(wave * gain, np.int16), first)
    if variant == "breath":
        breath = _noise(_BREATH_RMS, int(_BREATH_S * SAMPLE_RATE_HZ))
        return Reply(np.concatenate([breath, wave]), len(breath))
    return Reply(wave, 0)


def background_of(variant: str) -> Pcm:
    """Returns what is on the reference's line all the time; empty for silence."""
    count = _BACKGROUND_S * SAMPLE_RATE_HZ
    if variant == "noise":
        return _noise(_NOISE_RMS, count)
    if variant == "music":
        seconds = np.arange(count) / SAMPLE_RATE_HZ
        beat = 0.6 + 0.4 * np.sin(2 * np.pi * 0.5 * seconds)
        chord = beat * sum(np.sin(2 * np.pi * hz * seconds) for hz in _CHORD_HZ)
        return _pcm(chord * _MUSIC_RMS / np.sqrt(np.mean(np.square(chord))))
    return np.zeros(0, np.int16)


def _noise(rms: float, count: int) -> Pcm:
    return _pcm(np.random.default_rng(SEED).normal(0.0, rms, count))


def _pcm(wave: npt.NDArray[np.float64]) -> Pcm:
    return np.asarray(wave * np.iinfo(np.int16).max, np.int16)


class _ReferenceAgent:
    """An agent that answers each tone with a tone, a known time after it heard the end of it.

    It has a connection of its own to the server, but lives in the caller's process: so both
    ends are on one clock, and nothing about the clocks has to be believed.
    """

    def __init__(self, variant: str) -> None:
        self.delay_s = DELAYS_S[0]
        self.replies: list[_Reply] = []
        self.reply = reply_of(variant)
        self._room = new_room()
        self._microphone = Microphone()
        self._microphone.background = background_of(variant)
        self._listener = Listener(on_frame=self._on_frame)
        self._answered = 0
        self._answers: set[asyncio.Task[None]] = set()

    async def join(self, url: str, key: str, secret: SecretStr, room: str) -> None:
        def on_track(
            track: rtc.Track, _: rtc.RemoteTrackPublication, __: rtc.RemoteParticipant
        ) -> None:
            self._listener.listen(track)

        self._room.on("track_subscribed", on_track)
        attributes = {"lk.agent.name": _AGENT_NAME, "lk.agent.state": "listening"}
        token = agent_token(key, secret, room, _AGENT_NAME, attributes=attributes)
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await connect_to_end(self._room, url, token)
                await self._microphone.publish(self._room)
        except (rtc.ConnectError, TimeoutError) as error:
            raise ServerUnreachableError(
                f"the reference agent cannot connect to {url}: {error or 'no answer'}",
                "check that the server runs and that its RTC ports can be reached",
            ) from None

    def _on_frame(self, _: str, __: Pcm, at_s: float) -> None:
        """Answers a tone as soon as it has ended, which is sooner than a voice is known to have."""
        for voice in self._listener.voices[self._answered :]:
            long_enough = voice.end_s - voice.start_s >= _TONE_LEAST_S
            if long_enough and at_s - voice.end_s >= _TONE_ENDED_S:
                self._answered += 1
                task = asyncio.create_task(self._answer(voice.end_s))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)

    async def _answer(self, heard_s: float) -> None:
        samples, first = self.reply
        begin_s = heard_s + self.delay_s - first / SAMPLE_RATE_HZ
        await asyncio.sleep(begin_s - asyncio.get_running_loop().time())
        left_s, _ = await self._microphone.play(samples, first, len(samples) - 1)
        self.replies.append(_Reply(heard_s, left_s))

    async def hear_silence(self) -> None:
        """Waits until the caller's silence was heard for a while, from which the tone stands out.

        Raises:
            StageTimeoutError: Nothing is heard of the caller.
        """
        if not await poll(lambda: self._listener.heard_s >= _SILENCE_S, _JOIN_TIMEOUT_S, _POLL_S):
            raise StageTimeoutError(
                "the caller's silence", _JOIN_TIMEOUT_S, "no audio of the caller arrives"
            )

    def reply_between(self, said_s: float, heard_s: float) -> _Reply:
        for reply in self.replies:
            if said_s <= reply.left_s <= heard_s:
                return reply
        raise LabvoiceError("what was heard is no reply of the reference", "repeat the run")

    async def leave(self) -> None:
        await cancel(*self._answers)
        await self._microphone.aclose()
        await self._listener.aclose()
        await self._room.disconnect()


async def calibrate(
    lab: Lab,
    trials: int = 10,
    *,
    arms: str | Sequence[str] = "plain",
    **given: Unpack[RunKeywords],
) -> Run:
    """Measures the instrument: calls to a reference that answers after a known time.

    Each trial is a call of as many turns as there are delays. In each, `voice_to_voice_error` is
    what the caller read less how long the reference truly took, and `uplink` and `downlink` are
    its two parts: from a sample's leaving one microphone to its being heard at the other end. A
    user's ear has these two ways as well. In a lab that dates packets, the caller's own ends are
    apart: `transport_caller` (the last voiced sample leaves), `jitter_buffer` and
    `transport_rest` (from a packet's arrival to its being heard, less the jitter buffer), and
    `instrument_error` is their sum without the jitter buffer and without `packetisation`. That of
    20 turns or more is kept for the reports and comparisons of later runs on this machine.

    Args:
        lab: It needs no worker.
        trials: How many calls of each variant.
        arms: Of :data:`VARIANTS`, as a list or with commas.

    Raises:
        UsageError: A number is out of range, or there is no such variant.
        RunFileError: The run file exists already.
    """
    options = RunOptions(**given)
    options.rounds(trials)
    reference = Target.named(_AGENT_NAME)  # none of labvoice's engines
    known = [Arm(name, agent_name=_AGENT_NAME, target=reference) for name in VARIANTS]
    calibration = await measure_calls(
        lab,
        "calibrate",
        trials,
        choose(arms, known),
        options,
        lambda this, call, _: _calibrate(lab, this, call),
        said=lambda _: [""] * len(DELAYS_S),
        config={"agent_name": _AGENT_NAME, "delays_s": list(DELAYS_S)},
    )
    keep_calibration(lab.settings, calibration)
    return calibration


async def _calibrate(lab: Lab, this: Trial, call: Call) -> str:
    _, key, secret = lab.settings.livekit
    reference = _ReferenceAgent(this.arm)
    try:
        assert lab.stack.server is not None
        await reference.join(lab.stack.server.agent_url, key, secret, call.room_name)
        await call.connect()
        await reference.hear_silence()
        this.outcome("ok")
        errors = []
        for delay_s in DELAYS_S:
            reference.delay_s = delay_s
            errors.append(await _turn(this, call, reference))
    finally:
        await reference.leave()
    what = "adds" if call.media.link is not None else "read too much by"
    return f"{what} " + ", ".join(f"{error_s * 1000:.0f} ms" for error_s in errors)


def _packetisation_s(call: Call, reference: _ReferenceAgent) -> float | None:
    """How long a turn's two edges wait in their packets, in seconds; None where none was found.

    The caller's last voiced sample leaves when its packet is full; the first voiced one of the
    reply is heard after those before it in its packet.
    """
    packets = call.media.packets
    if packets is None or packets.last is None or packets.first is None:
        return None
    said = tone()
    ends_s = offset_in_packet(packets.spoken, packets.last, said, len(said) - 1)
    sent = [pair.sent for pair in packets.reply]
    begins_s = offset_in_packet(sent, packets.first.sent, *reference.reply)
    return PACKET_S - ends_s + begins_s


async def _turn(this: Trial, call: Call, reference: _ReferenceAgent) -> float:
    turn = await call.say(Utterance("", tone(), SAMPLE_RATE_HZ, "tone"))
    turn.marks["reply_heard"] = await call.hear_onset(_REPLY_TIMEOUT_S)
    await call.hear_end()
    reply = reference.reply_between(turn.marks["user_speech_end"], turn.marks["reply_heard"])
    this.run.mark(this.number, Mark("reply_heard", turn.marks["reply_heard"]), turn=turn.number)
    await call.take_media(turn)
    uplink_s = reply.heard_s - turn.marks["user_speech_end"]
    downlink_s = turn.marks["reply_heard"] - reply.left_s
    stages = dict(
        zip(CALIBRATION_STAGES, (uplink_s + downlink_s, uplink_s, downlink_s), strict=True)
    )
    if (packets_s := _packetisation_s(call, reference)) is not None:
        stages[PACKETISATION] = packets_s
    if packets_s is not None and turn.jitter_buffer_s is not None:
        # Without one of the two, what is left would be theirs and not the instrument's.
        sent_s = turn.marks["speech_packet_sent"] - turn.marks["user_speech_end"]
        heard_s = turn.marks["reply_heard"] - turn.marks["reply_packet_received"]
        stages[INSTRUMENT_ERROR] = sent_s + heard_s - turn.jitter_buffer_s - packets_s
    for stage, duration_s in stages.items():
        this.run.stage(this.number, stage, duration_s, turn=turn.number, source="reference")
    record_buffer(this.run, this.number, turn)
    this.outcome("ok", turn=turn.number)
    return stages.get(INSTRUMENT_ERROR, stages["voice_to_voice_error"])
