"""One call in a job process: its preloaded models and its AgentSession."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from livekit import rtc
from livekit.agents import (
    NOT_GIVEN,
    AgentSession,
    APIError,
    AutoSubscribe,
    CloseEvent,
    JobContext,
    TurnHandlingOptions,
    inference,
    llm,
    room_io,
    stt,
    tts,
    vad,
)
from livekit.agents.voice.turn import InterruptionOptions
from livekit.plugins import openai
from openai import AsyncOpenAI

from labvoice.agent import _livekit, traces
from labvoice.agent.call_memory import CallMemory
from labvoice.agent.guard import refused_by_server
from labvoice.agent.hybrid import INSTRUCTIONS, LabAgent
from labvoice.agent.idle import IdleWatch
from labvoice.agent.markup import without_markup
from labvoice.agent.model_errors import ModelErrors
from labvoice.agent.presence import ON_PURPOSE, Presence
from labvoice.agent.reports import report_end, report_event
from labvoice.choices import Mode
from labvoice.memory.client import import_client
from labvoice.protocol.metadata import ATTRIBUTE_MEMORY, parse_metadata
from labvoice.protocol.vocabulary import RPC_CLOCK, RPC_INTERRUPT, RPC_MARKS
from labvoice.proxies import is_loopback, proxy_for
from labvoice.settings import DEFAULT_OPENAI_MODEL, Settings, load_settings
from labvoice.speech import engines
from labvoice.speech.graded import SpokenDetector
from labvoice.speech.turn_ends import load_turn_detector

logger = logging.getLogger("labvoice.agent")

_OUTPUT_SAMPLE_RATE_HZ = 24000
_ASK_TIMEOUT_S = 2.0
_LONGEST_SPEECH_S = 30.0  # the default, 10 s, makes the answer to a longer turn late
_MOST_ATTEMPTS = 16  # the recogniser itself limits those before a silence
_SILENCE_S, _SHORT_SILENCE_S = 0.25, 0.15
"""Silence after which LiveKit's voice detector hears an end of speech: the least that LiveKit takes
beside a detector of audio, and what the transcript takes, for one of text."""
_WARM_UP_TIMEOUT_S = 20.0  # a cold prompt costs the small model 3 s on idle cores

Phrases = dict[str, list[rtc.AudioFrame]]
"""Audio by text."""
phrases: Phrases = {}
"""What :mod:`labvoice.agent.preload` has synthesised before the fork."""


@dataclass
class Models:
    """The models, loaded once per job process before a job arrives."""

    stt: stt.STT[Any]
    tts: tts.TTS[Any]
    vad: vad.VAD
    llm: llm.LLM[Any]
    spoken: Phrases
    """Audio of greeting and apology: synthesised once."""


def load_llm(settings: Settings) -> llm.LLM[Any]:
    """Returns a client of the OpenAI-compatible model that the settings name.

    The embedded models too are reached by `OPENAI_BASE_URL`, which the stack sets for the
    workers that it starts.
    """
    key, temperature = settings.openai_api_key, settings.resolved_temperature
    address = settings.openai_base_url
    client = AsyncOpenAI(
        api_key=key.get_secret_value() if key else "none",
        base_url=address,
        max_retries=0,  # the framework repeats by itself
        http_client=httpx2.AsyncClient(
            trust_env=not is_loopback(address or ""),
            proxy=proxy_for(address or "https://api.openai.com/v1"),
            # As the plugin has them (livekit-plugins-openai 1.8.9, llm.py).
            timeout=httpx2.Timeout(connect=15.0, read=5.0, write=5.0, pool=5.0),
            follow_redirects=True,
            limits=httpx2.Limits(
                max_connections=50, max_keepalive_connections=50, keepalive_expiry=120
            ),
        ),
    )
    model = openai.LLM(
        model=settings.llm_model or DEFAULT_OPENAI_MODEL,
        temperature=NOT_GIVEN if temperature is None else temperature,
        client=client,
    )
    model._owns_client = True  # no public name (livekit-plugins-openai 1.8.9): `aclose` closes it
    return model


async def _warm_up(settings: Settings) -> None:
    """Makes WebRTC's factory, and has the model read the instructions: its prefix cache keeps them.

    Both would delay the first call.
    """
    source = rtc.AudioSource(_OUTPUT_SAMPLE_RATE_HZ, 1)
    rtc.LocalAudioTrack.create_audio_track("warm-up", source)
    await source.aclose()
    # The first connection of a process takes 35 ms longer than the second, also a refused one.
    with contextlib.suppress(rtc.ConnectError, TimeoutError):
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            await rtc.Room().connect(str(settings.livekit_url), "no token: it shall be refused")
    # A separate client: the connections of this event loop cannot serve the job's.
    model = load_llm(settings)
    chat = llm.ChatContext.empty()
    chat.add_message(role="system", content=INSTRUCTIONS)
    chat.add_message(role="user", content="Hello.")
    try:
        async with asyncio.timeout(_WARM_UP_TIMEOUT_S):
            async with model.chat(chat_ctx=chat) as stream:
                async for _ in stream:
                    break
    except (APIError, TimeoutError) as error:
        logger.warning("the model did not answer the warm-up: %s", error)
    finally:
        await model.aclose()


def synthesise_phrases(settings: Settings, speech: tts.TTS[Any]) -> Phrases:
    """Returns the audio of greeting and apology: no user waits for their synthesis then."""

    async def synthesise() -> Phrases:
        spoken: Phrases = {}
        for text in (settings.greeting, settings.apology):
            if text:
                async with speech.synthesize(text) as stream:
                    spoken[text] = [event.frame async for event in stream]
        return spoken

    return asyncio.run(synthesise())


@functools.cache
def load_models() -> Models:
    """Loads the models of the settings; cached, so that threads of one process share them."""
    settings = load_settings()
    if settings.letta_base_url:
        import_client()
    recogniser, voice = engines.both(settings)
    speech = voice.load(settings)
    _turn_detection(settings)  # its weights stay loaded
    spoken: Phrases = {}
    if voice.local:
        asyncio.run(_warm_up(settings))
        spoken = phrases or synthesise_phrases(settings, speech)
    silence_s = _SHORT_SILENCE_S if settings.turn_detector == "smart-turn" else _SILENCE_S
    return Models(
        recogniser.load(settings),
        speech,
        inference.VAD(min_silence_duration=silence_s) if recogniser.local else engines.load_vad(),
        load_llm(settings),
        spoken,
    )


def make_session(
    models: Models, settings: Settings, mode: Mode, detector: Any
) -> AgentSession[None]:
    """Builds the AgentSession with the models: endpointing and preemptive generation.

    In letta mode nothing is generated before the turn has ended: a speculative turn would
    already be in Letta's memory.
    """
    return AgentSession(
        stt=models.stt,
        tts=models.tts,
        llm=models.llm,
        vad=models.vad,
        turn_handling=TurnHandlingOptions(
            turn_detection=detector,
            endpointing={
                "mode": settings.endpointing_mode,
                "min_delay": settings.resolved_min_endpointing_delay_s,
                "max_delay": settings.max_endpointing_delay_s,
            },
            preemptive_generation={
                "enabled": mode != "letta",
                "preemptive_tts": True,
                "max_speech_duration": _LONGEST_SPEECH_S,
                "max_retries": _MOST_ATTEMPTS,
            },
            interruption=_interruption(settings),
        ),
        tts_text_transforms=[without_markup, "filter_emoji"],
        user_away_timeout=None,
    )


def _turn_detection(settings: Settings) -> Any:
    """What ends a turn: named always, for the default picks a cloud model if there are keys."""
    if settings.turn_detector == "vad":
        return "vad"
    return load_turn_detector(settings.turn_detector, settings, settings.turn_detector_threshold)


def _interruption(settings: Settings) -> InterruptionOptions:
    """The settings of interruptions; `off` leaves LiveKit's detector at its cheapest."""
    mode = settings.interruption_mode
    return {
        "enabled": mode != "off",
        "mode": "adaptive" if mode == "adaptive" else "vad",
        "min_duration": settings.interruption_min_duration_s,
        "min_words": settings.interruption_min_words,
        "resume_false_interruption": settings.resume_false_interruption,
        "false_interruption_timeout": settings.false_interruption_timeout_s,
    }


async def serve(context: JobContext) -> None:
    """Publishes the agent's audio track first, so that the others see it, then starts the session.

    A participant that publishes nothing is announced to the others only at the room's next
    3 s tick (LiveKit `pkg/rtc/room.go`, `subscriberUpdateInterval`).
    """
    marks = {**_livekit.job_times(context), "entrypoint_started": time.time()}
    settings, models = load_settings(), load_models()
    # The dispatch may have been withdrawn since the job was accepted; asked while connecting.
    asking = asyncio.create_task(refused_by_server(settings, context.job))
    metadata = parse_metadata(context.job.metadata)
    traces.follow(context, metadata.traceparent)
    resume = metadata.resume
    mode = metadata.mode or settings.mode
    detector = _turn_detection(settings)
    spoken = detector if isinstance(detector, SpokenDetector) else None
    session = make_session(models, settings, mode, detector)
    state_changed = asyncio.Event()
    memory = CallMemory(
        settings,
        None if mode == "direct" else metadata.letta_agent_id,
        context.job.room.name,
        lambda _: state_changed.set(),
    )
    agent = LabAgent(mode, memory, resume.history if resume else (), spoken)
    session.on("conversation_item_added", agent.on_item)
    model_errors = ModelErrors(settings)
    model_errors.follow(session)
    await context.connect(auto_subscribe=AutoSubscribe.AUDIO_ONLY)
    marks["agent_connected"] = time.time()
    if reason := await asking:
        report_end(context, reason)
        context.shutdown(reason=reason)
        return
    presence = Presence(context.room, session, resume.history if resume else ())
    presence.start()
    report_event("started", room=context.room.name, job_id=context.job.id, pid=os.getpid())
    local = context.room.local_participant

    async def answer_clock(_: rtc.RpcInvocationData) -> str:
        return json.dumps({"wall_s": time.time()})

    async def answer_marks(_: rtc.RpcInvocationData) -> str:
        figures = {message_id: dict(stages) for message_id, stages in agent.figures.items()}
        for message_id, sync_s in (await agent.synced()).items():
            figures.setdefault(message_id, {})["memory_sync"] = sync_s
        return json.dumps(
            {
                "marks": marks,
                "job_id": context.job.id,
                "dispatch_id": context.job.dispatch_id,
                "worker_id": context.worker_id,
                "pid": os.getpid(),
                "figures": figures,
                "memory": await memory.facts(),
                "model_error": model_errors.sentence,
            }
        )

    async def interrupt(_: rtc.RpcInvocationData) -> str:
        session.interrupt(force=True)
        return ""

    local.register_rpc_method(RPC_INTERRUPT, interrupt)
    local.register_rpc_method(RPC_CLOCK, answer_clock)
    local.register_rpc_method(RPC_MARKS, answer_marks)

    output = _livekit.audio_output(
        context.room, sample_rate_hz=_OUTPUT_SAMPLE_RATE_HZ, track="agent-audio"
    )

    def on_published(*_: object) -> None:
        marks.setdefault("agent_track_published", time.time())

    context.room.on("local_track_published", on_published)
    context.room.on("reconnected", lambda: _subscribe_again(context.room))
    publishing = asyncio.create_task(output.start())  # returns once a participant subscribes
    session.output.audio = output

    async def show_memory_state() -> None:
        while True:
            await state_changed.wait()
            state_changed.clear()
            with contextlib.suppress(TimeoutError):  # one answer in some hundred never comes
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    await local.set_attributes({ATTRIBUTE_MEMORY: memory.state})

    showing = asyncio.create_task(show_memory_state())

    async def close_all() -> None:
        publishing.cancel()
        showing.cancel()
        await output.aclose()
        agent.on_close()
        await memory.aclose()

    left = asyncio.Event()

    def leave(reason: str, on_purpose: bool = True) -> None:
        if left.is_set():  # the session closes because the job ends: no second reason
            return
        left.set()
        report_end(context, reason)
        leaving = asyncio.create_task(presence.leave(reason if on_purpose else ""))
        leaving.add_done_callback(lambda _: context.shutdown(reason=reason))

    def end_job(event: CloseEvent) -> None:
        watch.close()
        reason = event.reason.value
        if event.error:
            error = f"{event.error.label}: {event.error.error}"
            reason += f": {model_errors.describe(event.error) or settings.masked(error)}"
        leave(reason, event.reason in ON_PURPOSE)

    session.on("close", end_job)
    watch = IdleWatch(context.room, settings.idle_timeout_s, leave)
    context.add_shutdown_callback(close_all)
    await session.start(
        agent,
        room=context.room,
        room_options=room_io.RoomOptions(
            audio_input=room_io.AudioInputOptions(sample_rate=16000, frame_size_ms=20),
            audio_output=False,
        ),
    )
    marks["session_started"] = time.time()
    if resume is not None:
        # Not part of the conversation: the next answer ignores it.
        _say(session, settings.apology, models, add_to_chat_ctx=False)
        if resume.history and resume.history[-1].role == "user":
            session.generate_reply()  # the lost agent had not answered
    else:
        _say(session, settings.greeting, models)


def _subscribe_again(room: rtc.Room) -> None:
    """Subscribes to audio tracks that were published during a reconnection to the server.

    LiveKit does not announce them, and `AutoSubscribe.AUDIO_ONLY` waits for an announcement
    (livekit-agents 1.8.9, job.py, `_apply_auto_subscribe_opts`): the agent would hear nothing.
    """
    for participant in room.remote_participants.values():
        for publication in participant.track_publications.values():
            if publication.kind == rtc.TrackKind.KIND_AUDIO:
                logger.info("subscribing again to %s of %s", publication.sid, participant.identity)
                publication.set_subscribed(True)


def _say(
    session: AgentSession[None], text: str, models: Models, *, add_to_chat_ctx: bool = True
) -> None:
    if text:
        frames = models.spoken.get(text)
        session.say(
            text,
            audio=_frames(frames) if frames else NOT_GIVEN,
            add_to_chat_ctx=add_to_chat_ctx,
        )


async def _frames(frames: list[rtc.AudioFrame]) -> AsyncIterator[rtc.AudioFrame]:
    for frame in frames:
        yield frame
