"""The gateway as clients that are not labvoice's use it: LiveKit Inference, OpenAI, Deepgram."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import soundfile
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, inference, llm, stt, tts
from livekit.plugins import deepgram
from livekit.plugins import openai as openai_plugin
from livekit.protocol.agent_pb import agent_inference
from pydantic import SecretStr

from labvoice.settings import load_settings
from labvoice.speech.detection import find_speech, resample
from labvoice.speech.utterances import SAMPLE_RATE, Utterance, human_utterances
from labvoice.stack.gateway.server import GatewayServer
from labvoice.stack.models.paced_model import REPLY
from labvoice.stack.models.server import ModelServer
from tests.stack.talking import PATIENCE_S

KEY, SECRET = "gateway-test", "a-secret-of-the-test-with-32-characters"
TEXT = "The weather is fine today."
ONCE = APIConnectOptions(max_retry=0, timeout=20)


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayServer]:
    """A gateway over the embedded speech and the paced model."""
    folder = tmp_path_factory.mktemp("gateway")
    settings = load_settings(data_dir=folder, llm="paced")
    async with await ModelServer.start("paced", settings, state_dir=folder) as model:
        settings = settings.model_copy(
            update={
                "livekit_url": "ws://127.0.0.1:9",
                "livekit_api_key": KEY,
                "livekit_api_secret": SecretStr(SECRET),
                "openai_base_url": model.base_url,
                "openai_api_key": None,
                "llm_model": model.model,
            }
        )
        async with await GatewayServer.start(settings, state_dir=folder) as server:
            yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """What the clients connect with."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="module")
async def client(gateway: GatewayServer) -> AsyncIterator[openai.AsyncClient]:
    """OpenAI's own client."""
    key = gateway.key.get_secret_value()
    async with openai.AsyncClient(base_url=gateway.base_url, api_key=key) as client:
        yield client


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Utterance:
    """A clause spoken by a human."""
    return human_utterances(load_settings())[0]


def access(gateway: GatewayServer, http: aiohttp.ClientSession) -> dict[str, Any]:
    """What every inference client is told."""
    return {
        "base_url": gateway.base_url,
        "api_key": KEY,
        "api_secret": SECRET,
        "http_session": http,
    }


async def heard(recogniser: stt.STT[Any], question: Utterance) -> tuple[list[str], str]:
    """Streams a recording in real time; returns the kinds of event and the final text."""
    step = SAMPLE_RATE // 50
    silence = np.zeros(SAMPLE_RATE, np.int16)
    audio = np.concatenate([silence[: SAMPLE_RATE // 2], question.samples, silence])
    kinds: list[str] = []
    async with recogniser.stream(conn_options=ONCE) as stream:

        async def feed() -> None:
            for start in range(0, len(audio) - step + 1, step):
                frame = audio[start : start + step]
                stream.push_frame(rtc.AudioFrame(frame.tobytes(), SAMPLE_RATE, 1, step))
                await asyncio.sleep(0.02)

        feeding = asyncio.create_task(feed())
        text = ""
        async with asyncio.timeout(PATIENCE_S):
            async for event in stream:
                kinds.append(event.type)
                if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                    text = event.alternatives[0].text
                    break
        feeding.cancel()
    return kinds, text


async def spoken(voice: tts.TTS[Any]) -> tuple[np.ndarray[Any, np.dtype[np.int16]], int]:
    """Has a text spoken; returns the samples and their rate."""
    frames = []
    async with voice.synthesize(TEXT, conn_options=ONCE) as stream:
        async for audio in stream:
            frames.append(np.frombuffer(audio.frame.data, np.int16))
            rate = audio.frame.sample_rate
    return np.concatenate(frames), rate


async def transcribed(client: openai.AsyncClient, samples: Any, rate: int) -> str:
    """Has the gateway write down what it spoke."""
    recogniser = openai_plugin.STT(client=client, model="whisper-1")
    frame = rtc.AudioFrame(samples.tobytes(), rate, 1, len(samples))
    event = await recogniser.recognize(frame, conn_options=ONCE)
    return event.alternatives[0].text.lower()


async def answered(model: llm.LLM[Any]) -> str:
    """Asks a model one question."""
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="What do you say?")
    pieces = []
    try:
        async with model.chat(chat_ctx=context, conn_options=ONCE) as stream:
            async for chunk in stream:
                if chunk.delta and chunk.delta.content:
                    pieces.append(chunk.delta.content)
    finally:
        await model.aclose()
    return "".join(pieces)


async def test_livekit_inference_recognises(
    gateway: GatewayServer, http: aiohttp.ClientSession, question: Utterance
) -> None:
    """inference.STT gets a start of speech, interim transcripts and the final words."""
    recogniser: Any = inference.STT("deepgram/nova-3", **access(gateway, http))
    kinds, text = await heard(recogniser, question)
    first = question.text.lower().split()[:2]
    assert text.lower().replace(",", "").split()[:2] == first
    assert kinds[0] == stt.SpeechEventType.START_OF_SPEECH
    report = await gateway.report()
    assert report["models"]["stt"]["deepgram/nova-3"].startswith("moonshine")


async def test_livekit_inference_speaks(
    gateway: GatewayServer, http: aiohttp.ClientSession, client: openai.AsyncClient
) -> None:
    """inference.TTS gets audio at its own rate, whose words are those of the text."""
    voice: Any = inference.TTS("cartesia/sonic-3", **access(gateway, http))
    samples, rate = await spoken(voice)
    await voice.aclose()
    assert rate == voice.sample_rate
    assert "fine today" in await transcribed(client, samples, rate)


async def test_livekit_inference_answers(gateway: GatewayServer) -> None:
    """inference.LLM gets the lab's language model, whatever model it names."""
    model = inference.LLM(
        "openai/gpt-4.1-mini", base_url=gateway.base_url, api_key=KEY, api_secret=SECRET
    )
    assert await answered(model) == REPLY
    report = await gateway.report()
    assert report["models"]["llm"]["openai/gpt-4.1-mini"] == "paced"


@pytest.mark.parametrize("form", ["mp3", "wav", "pcm", "opus"])
async def test_openai_speaks_in_every_format(client: openai.AsyncClient, form: Any) -> None:
    """livekit-plugins-openai's voice decodes what comes."""
    voice = openai_plugin.TTS(client=client, response_format=form)
    samples, rate = await spoken(voice)
    assert "fine today" in await transcribed(client, samples, rate)


async def test_openai_speaks_in_flac(client: openai.AsyncClient) -> None:
    """A FLAC file is whole.

    livekit-agents 1.8.9 cannot tell: its decoder (`utils/codecs/decoder.py`) drops the first block
    of any FLAC stream, 171 ms of libsndfile's and 96 ms of FFmpeg's at 24 kHz, and what is left of
    a short clause is sometimes misrecognised.
    """
    answer = await client.audio.speech.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="flac"
    )
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert "fine today" in await transcribed(client, samples, rate)


async def test_openai_answers(client: openai.AsyncClient) -> None:
    """livekit-plugins-openai's model is the lab's."""
    model = openai_plugin.LLM(client=client)
    assert await answered(model) == REPLY


async def test_deepgram_recognises_and_speaks(
    gateway: GatewayServer,
    http: aiohttp.ClientSession,
    client: openai.AsyncClient,
    question: Utterance,
) -> None:
    """livekit-plugins-deepgram works with its base URL and key set to the gateway's."""
    key = gateway.key.get_secret_value()
    recogniser = deepgram.STT(base_url=f"{gateway.base_url}/listen", api_key=key, http_session=http)
    _, text = await heard(recogniser, question)
    assert text.lower().split()[:1] == question.text.lower().split()[:1]
    voice = deepgram.TTS(base_url=f"{gateway.base_url}/speak", api_key=key, http_session=http)
    samples, rate = await spoken(voice)
    await voice.aclose()
    assert "fine today" in await transcribed(client, samples, rate)


async def test_livekit_inference_tells_the_end_of_a_turn(
    gateway: GatewayServer, http: aiohttp.ClientSession, question: Utterance
) -> None:
    """`/v1/eot` answers by the SDK's protocol: a clause is over, the beginning of one is not."""
    headers = {"Authorization": f"Bearer {gateway.key.get_secret_value()}"}
    spoken = resample(question.samples, question.sample_rate, 16000)
    speech = find_speech(spoken, 16000)
    assert speech is not None
    told = []
    for end in (speech.last + 3200, speech.first + (speech.last - speech.first) // 3):
        async with http.ws_connect(f"{gateway.base_url}/eot", headers=headers) as socket:
            create = agent_inference.ClientMessage()
            create.session_create.settings.sample_rate = 16000
            audio = agent_inference.ClientMessage()
            audio.input_audio.audio = spoken[:end].tobytes()
            ask = agent_inference.ClientMessage()
            ask.inference_start.request_id = "turn"
            for message in (create, audio, ask):
                await socket.send_bytes(message.SerializeToString())
            async with asyncio.timeout(PATIENCE_S):
                created, answer = [
                    agent_inference.ServerMessage.FromString(await socket.receive_bytes())
                    for _ in range(2)
                ]
        assert created.session_created.default_threshold > 0
        assert answer.request_id == "turn"
        told.append(answer.eot_prediction.probability)
    assert 0 <= told[1] < told[0] <= 1


async def test_what_is_not_served_is_refused_at_the_handshake(
    gateway: GatewayServer, http: aiohttp.ClientSession
) -> None:
    """A client of adaptive interruption gets 404, so that the SDK falls back, and it is counted."""
    headers = {"Authorization": f"Bearer {gateway.key.get_secret_value()}"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(f"{gateway.base_url}/bargein", headers=headers)
    assert refused.value.status == 404
    assert (await gateway.report())["refused"]["/v1/bargein"] == 1


async def test_nobody_without_a_credential_is_served(
    gateway: GatewayServer, http: aiohttp.ClientSession
) -> None:
    """Neither a request without a key nor one signed with another secret is answered."""
    for path in ("stt", "models", "listen"):
        async with http.get(f"{gateway.base_url}/{path}") as answer:
            assert answer.status == 401
    model = inference.LLM(
        "openai/gpt-4.1-mini",
        base_url=gateway.base_url,
        api_key=KEY,
        api_secret="another-secret-with-32-characters-or-so",
    )
    with pytest.raises(APIError):
        await answered(model)


async def test_an_upstream_recognises_and_speaks_behind_the_gateway(
    gateway: GatewayServer,
    http: aiohttp.ClientSession,
    question: Utterance,
    tmp_path: Path,
) -> None:
    """Its model is named as what answered, sockets are served too, and its key is in no log."""
    key = gateway.key
    settings = load_settings(
        data_dir=tmp_path,
        livekit_url="ws://127.0.0.1:9",
        livekit_api_key=KEY,
        livekit_api_secret=SECRET,
        openai_base_url="http://127.0.0.1:9/v1",
        upstream_stt=f"{gateway.base_url}#whisper-of-mine",
        upstream_stt_key=key,
        upstream_tts=f"{gateway.base_url}#voice-of-mine",
        upstream_tts_key=key,
        upstream_llm=gateway.base_url,
        upstream_llm_key=key,
    )
    async with await GatewayServer.start(settings, state_dir=tmp_path) as front:
        recogniser: Any = inference.STT("deepgram/nova-3", **access(front, http))
        _, text = await heard(recogniser, question)
        assert text.lower().split()[:1] == question.text.lower().split()[:1]
        voice: Any = inference.TTS("cartesia/sonic-3", **access(front, http))
        samples, rate = await spoken(voice)
        await voice.aclose()
        own_key = front.key.get_secret_value()
        async with openai.AsyncClient(base_url=front.base_url, api_key=own_key) as client:
            assert "fine today" in await transcribed(client, samples, rate)
            assert await answered(openai_plugin.LLM(client=client, model="mine")) == REPLY
            await front.disturb("llm", status=503)
            with pytest.raises(APIError, match="on purpose"):
                await answered(openai_plugin.LLM(client=client, model="mine"))
            await front.disturb("llm")
            assert await answered(openai_plugin.LLM(client=client, model="mine")) == REPLY
        models = (await front.report())["models"]
        assert models["stt"]["deepgram/nova-3"] == "whisper-of-mine"
        assert models["tts"]["cartesia/sonic-3"] == "voice-of-mine"
        assert models["llm"] == {"mine": "mine"}
    assert key.get_secret_value() not in (tmp_path / "gateway.log").read_text(encoding="utf-8")
