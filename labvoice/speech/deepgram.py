"""Deepgram as a speech engine: its key and address from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from labvoice.errors import CredentialsError, ServerUnreachableError, SettingsError
from labvoice.proxies import http_client
from labvoice.settings import Settings

if TYPE_CHECKING:
    from livekit.agents import stt, tts

_ASK_TIMEOUT_S = 10.0


def load_stt(settings: Settings) -> stt.STT[Any]:
    """Returns a recogniser; sends no request to Deepgram."""
    from livekit.plugins import deepgram

    url = settings.deepgram_base_url.rstrip("/")
    return deepgram.STT(api_key=key_of(settings), base_url=f"{url}/v1/listen")


def load_tts(settings: Settings) -> tts.TTS[Any]:
    """Returns a synthesiser; sends no request to Deepgram."""
    from livekit.plugins import deepgram

    url = settings.deepgram_base_url.rstrip("/")
    return deepgram.TTS(api_key=key_of(settings), base_url=f"{url}/v1/speak")


async def look(settings: Settings) -> str:
    """Asks Deepgram whether the key is valid; returns the result as text.

    Raises:
        SettingsError: There is no key.
        ServerUnreachableError: Nothing answers.
        CredentialsError: The key is refused.
    """
    base_url = settings.deepgram_base_url
    key = key_of(settings)
    try:
        async with http_client(base_url, timeout=_ASK_TIMEOUT_S) as client:
            answer = await client.get(
                f"{base_url.rstrip('/')}/v1/projects", headers={"Authorization": f"Token {key}"}
            )
    except httpx.HTTPError as error:
        raise ServerUnreachableError(
            f"Deepgram does not answer at {base_url}: {error or type(error).__name__}",
            "check the network, or DEEPGRAM_BASE_URL",
        ) from None
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise CredentialsError(
            f"Deepgram at {base_url} refuses the key",
            "check DEEPGRAM_API_KEY; without it the embedded models recognise and speak",
        )
    # A self-hosted Deepgram may list no projects; it is enough that it does not refuse the key.
    return f"it answers at {base_url} and takes the key"


def key_of(settings: Settings) -> str:
    """Returns the key.

    Raises:
        SettingsError: There is none.
    """
    if settings.deepgram_api_key is None:
        raise SettingsError(
            "Deepgram is selected for speech, but no key is set",
            "set DEEPGRAM_API_KEY, or LABVOICE_STT and LABVOICE_TTS to `embedded`",
        )
    return settings.deepgram_api_key.get_secret_value()
