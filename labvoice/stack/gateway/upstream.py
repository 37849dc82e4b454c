"""Models of the user's choice behind the gateway, by OpenAI's HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from livekit.agents import inference, stt, tts
from livekit.plugins import openai
from pydantic import SecretStr

from labvoice.settings import Settings
from labvoice.speech.engines import stt_engine, tts_engine
from labvoice.stack.gateway.engines import Engines


@dataclass(frozen=True)
class Upstream:
    """Where a model answers.

    Attributes:
        base_url: Its address, OpenAI-compatible, ending in `/v1`.
        model: Name to ask for there; None if none was given.
        key: Its key; None if it needs none.
    """

    base_url: str
    model: str | None
    key: str | None = field(repr=False)

    @classmethod
    def of(cls, text: str, key: SecretStr | None) -> Upstream:
        """Reads an address with the model after a `#`."""
        base_url, _, model = text.partition("#")
        return cls(base_url.rstrip("/"), model or None, key.get_secret_value() if key else None)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of livekit-plugins-openai."""
        named = {"model": self.model} if self.model else {}
        return {"base_url": self.base_url, "api_key": self.key or "none", **named}


def load_engines(settings: Settings) -> Engines:
    """Loads what stands behind the gateway: the lab's own models, or an upstream's.

    Args:
        settings: `openai_base_url` is the lab's own language model.
    """
    assert settings.openai_base_url is not None
    own = Upstream.of(settings.openai_base_url, settings.openai_api_key)
    llm = own
    if settings.upstream_llm:
        llm = Upstream.of(settings.upstream_llm, settings.upstream_llm_key)
    return Engines(
        _recogniser(settings),
        _voice(settings),
        llm_url=llm.base_url,
        llm_model=llm.model if settings.upstream_llm else settings.llm_model,
        llm_key=llm.key,
    )


def _recogniser(settings: Settings) -> stt.STT[Any]:
    if not settings.upstream_stt:
        return stt_engine(settings).load(settings)
    upstream = Upstream.of(settings.upstream_stt, settings.upstream_stt_key)
    # OpenAI's recognisers take whole recordings: LiveKit's voice detector cuts the stream.
    return stt.StreamAdapter(stt=openai.STT(**upstream.options), vad=inference.VAD())


def _voice(settings: Settings) -> tts.TTS[Any]:
    if not settings.upstream_tts:
        return tts_engine(settings).load(settings)
    upstream = Upstream.of(settings.upstream_tts, settings.upstream_tts_key)
    voice = openai.TTS(response_format="pcm", **upstream.options)
    return tts.StreamAdapter(tts=voice)
