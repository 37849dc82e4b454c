"""The gateway's application over engines of a package that it does not know."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest
import soundfile
from aiohttp.test_utils import TestClient, TestServer
from livekit.agents.utils import http_context
from pydantic import SecretStr

from labvoice.errors import SettingsError
from labvoice.settings import load_settings
from labvoice.stack.gateway.app import Gateway
from labvoice.stack.gateway.engines import Engines
from labvoice.stack.gateway.upstream import Upstream

KEY = "the-key"


class _Plugin:
    """A recogniser that asks for the job's HTTP session, as LiveKit's plugins do."""

    model = "plugin"

    async def recognize(self, _: Any) -> Any:
        state = "closed" if http_context.http_session().closed else "open"
        return SimpleNamespace(alternatives=[SimpleNamespace(text=state)])


async def test_an_engine_that_is_a_plugin_finds_an_http_session() -> None:
    """A recogniser of livekit-plugins answers here as it does in a job."""
    plugin: Any = _Plugin()
    engines = Engines(plugin, plugin, llm_url="http://127.0.0.1:9/v1", llm_model=None)
    gateway = Gateway(engines, api_key="k", api_secret="s" * 32, gateway_key=KEY)
    recording = io.BytesIO()
    soundfile.write(recording, np.zeros(1600, np.int16), 16000, format="WAV")
    recording.seek(0)
    form = aiohttp.FormData()
    form.add_field("file", recording, filename="a.wav")
    async with TestClient(TestServer(gateway.app())) as client:
        answer = await client.post(
            "/v1/audio/transcriptions", data=form, headers={"Authorization": f"Bearer {KEY}"}
        )
        assert await answer.json() == {"text": "open"}


def test_an_upstreams_model_stands_after_its_address() -> None:
    """The address goes without it, and the key is not in what is printed."""
    upstream = Upstream.of("https://models.example/v1/#large-2", SecretStr("the-secret"))
    assert (upstream.base_url, upstream.model) == ("https://models.example/v1", "large-2")
    assert Upstream.of("https://models.example/v1", None).model is None
    assert "the-secret" not in repr(upstream)


@pytest.mark.parametrize("url", ["models.example", "https://user:key@models.example/v1"])
def test_an_upstream_without_scheme_or_with_a_key_in_it_is_refused(url: str) -> None:
    """A key in an address would be in every log that names the address."""
    with pytest.raises(SettingsError, match="hold no key"):
        load_settings(upstream_llm=url)
