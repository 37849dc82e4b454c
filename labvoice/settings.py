"""Settings from environment variables and `.env`; secrets are not printed."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import platformdirs
from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AliasGenerator,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from labvoice.choices import Llm, Mode, RecordingFormat, TurnDetector
from labvoice.errors import SettingsError

_SettingsT = TypeVar("_SettingsT", bound=BaseSettings)
DEFAULT_AGENT_NAME = "letta-voice-agent"
DEFAULT_OPENAI_MODEL = "gpt-4o-mini"
"""Model requested from an OpenAI-compatible endpoint if none is named."""


_MAY_BE_EMPTY: Final[dict[str, JsonValue]] = {"may_be_empty": True}
"""Marks a setting whose empty value is meaningful; otherwise empty means unset."""


def _without_v1(address: str | None) -> str | None:
    """Letta's client adds the `/v1` itself."""
    return address and address.rstrip("/").removesuffix("/v1")


def _variable(field: str) -> str:
    """The environment variable of a setting; those of other programs have their names."""
    theirs = re.match("(livekit|openai|deepgram)_|letta_(base_url|api_key)$", field)
    return f"{'' if theirs else 'LABVOICE_'}{field.upper()}"


class Settings(BaseSettings):
    """All settings, read from the environment and from `.env` in the working directory.

    Nothing needs to be set: without a key, everything is embedded and offline.

    Raises:
        pydantic.ValidationError: A value is malformed; :func:`load_settings` raises a
            `SettingsError` instead.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        alias_generator=AliasGenerator(validation_alias=_variable),
    )

    livekit_url: str | None = None
    """Address of a running LiveKit server (`ws://…` or `wss://…`); unset: start one."""
    livekit_api_key: str | None = None
    livekit_api_secret: SecretStr | None = None
    redis_url: SecretStr | None = None
    """Redis that several LiveKit servers of a lab share, `redis://:PASSWORD@HOST:PORT`; unset:
    start one. No other LiveKit may use it."""

    agent_name: str = DEFAULT_AGENT_NAME
    """Name under which workers register and by which agents are dispatched."""

    llm: Llm | None = None
    """`small` (embedded SmolLM2), `paced` (reference model with fixed timing), `script`
    (what a scenario's `model` says; see :mod:`labvoice.stack.models.script_model`) or `openai`;
    unset: `openai` if `OPENAI_BASE_URL` or `OPENAI_API_KEY` is set, otherwise `small`."""
    llm_model: str | None = None
    """Model name at an OpenAI-compatible endpoint; unset: :data:`DEFAULT_OPENAI_MODEL`."""
    llm_temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; 0 keeps replies the same from run to run. Unset: 0 for labvoice's own
    models; not sent to an external endpoint, which may refuse any other than its default."""
    openai_base_url: str | None = None
    openai_api_key: SecretStr | None = None

    letta_base_url: Annotated[str | None, AfterValidator(_without_v1)] = None
    """Address of a running Letta server or of Letta Cloud, with or without `/v1`; unset:
    start an embedded one."""
    letta_turns_path: Path | None = None
    """File of the turns not yet written to Letta; the lab sets it for its workers."""
    letta_embedded: bool = False
    """Whether that address is the embedded server's; the lab sets it for its workers."""
    mode: Mode = "hybrid"
    """How the agent uses Letta: `hybrid`, `letta` or `direct`."""
    letta_api_key: SecretStr | None = None

    deepgram_api_key: SecretStr | None = None
    """If set, Deepgram is the default of `stt` and `tts`."""
    deepgram_base_url: str = "https://api.deepgram.com"
    """Address of Deepgram: another region, or a self-hosted one."""
    executor: Literal["process", "thread"] = "process"
    """How a worker runs its jobs: a process or a thread per job."""
    idle_processes: int = Field(1, ge=0, le=16)
    """Number of job processes that a worker keeps warm, with models loaded."""
    max_jobs: int = Field(4, ge=1, le=64)
    """Concurrent jobs per worker; its load is active jobs divided by this number."""
    idle_timeout_s: float = Field(60.0, ge=1, le=86400)
    """How long an agent waits in a room without a human before it leaves, in seconds."""
    min_endpointing_delay_s: float | None = Field(None, ge=0, le=5)
    """Silence after which a turn may end when the turn detector agrees, in seconds; unset: 0.2 with
    `smart-turn`, else 0.3.

    With `smart-turn` it is that of a sure question or request of seven words or more; a sure
    sentence of so many waits 0.25 s at least, all else 0.5 s, and 0.6 s after a comma. Of the 53
    built-in turns 8 are cut in on with these and 0.8 s, and 5 with LiveKit's defaults, which in a
    call end no turn before 0.58 s (`labvoice bench endpointing --offline --arms
    smart-turn,v1-mini:0.58:2.5`). The reply is generated meanwhile.
    """
    max_endpointing_delay_s: float = Field(0.8, ge=0, le=10)
    """Silence after which a turn ends although the turn detector disagrees, in seconds."""
    endpointing_mode: Literal["fixed", "dynamic"] = "fixed"
    """Whether LiveKit lengthens the shorter silence by the pauses that it hears in the call."""
    turn_detector: TurnDetector = "smart-turn"
    """What says whether a turn has ended: `smart-turn` (Smart Turn and the words; before 0.5 s
    only a question or sentence of seven words or more, where it is sure), `v1-mini` (LiveKit's
    model on the device), `either` (v1-mini, or Smart Turn where that is sure; before 0.4 s only
    both) or `vad` (silence alone)."""
    turn_detector_threshold: float | None = Field(None, ge=0, le=1)
    """Probability from which the turn detector agrees; its own when unset."""
    interruption_mode: Literal["vad", "adaptive", "off"] = "vad"
    """What makes the agent stop when it is spoken over: `vad` (speech of a length), `adaptive`
    (LiveKit's model in its cloud, which tells "mm-hm" from an interruption) or `off` (nothing)."""
    interruption_min_duration_s: float = Field(0.5, ge=0, le=5)
    """Length of speech that interrupts the agent, in seconds."""
    interruption_min_words: int = Field(0, ge=0, le=20)
    """How many words must have been recognised before the agent is interrupted."""
    resume_false_interruption: bool = True
    """Whether the agent goes on where it stopped and no words were recognised."""
    false_interruption_timeout_s: float = Field(2.0, gt=0, le=10)
    """Silence after which an interruption without words was none, in seconds."""
    greeting: str = Field(
        "Hello, how can I help you?", max_length=200, json_schema_extra=_MAY_BE_EMPTY
    )
    """Greeting of the agent; empty: it waits for the user."""
    apology: str = Field(
        "Sorry, I was away for a moment.", max_length=200, json_schema_extra=_MAY_BE_EMPTY
    )
    """First words of a replacement agent; empty: none."""
    failover_after_s: float = Field(1.2, ge=0.8, le=60)
    """Time without a heartbeat after which an agent is replaced, in seconds: three heartbeats."""
    drain_timeout_s: float = Field(300.0, ge=0)
    """Time that a stopping worker gives its calls to end, in seconds."""
    stt: str | None = None
    """Speech recognition: `embedded` (Moonshine base), `tiny`, `deepgram`, `plugin:NAME`, or a name
    that another package registers; see :mod:`labvoice.speech.engines`."""
    preflight: Literal["silence", "speech"] = "silence"
    """When the embedded recogniser gives a preflight transcript, on which the reply is generated
    before the turn has ended: from 60 ms of silence on, or while the caller still speaks, which
    costs half of a processor meanwhile and up to four requests to the model that are withdrawn."""
    tts: str | None = None
    """Speech synthesis: `embedded` (Piper), `deepgram`, `plugin:NAME`, or a registered name."""

    upstream_stt: str | None = None
    """OpenAI-compatible address, ending in `/v1`, of the recogniser behind the gateway, for agents
    that are not labvoice's; `#MODEL` after it names the model. Unset: the lab's own."""
    upstream_stt_key: SecretStr | None = None
    upstream_llm: str | None = None
    """The same of the language model; without `#MODEL` it gets the name that the agent asks for."""
    upstream_llm_key: SecretStr | None = None
    upstream_tts: str | None = None
    """The same of the voice."""
    upstream_tts_key: SecretStr | None = None

    judge: str | None = None
    """The OpenAI-compatible model that judges scenarios, as `URL#MODEL`; unset: none."""
    judge_key: SecretStr | None = None
    persona: str | None = None
    """The OpenAI-compatible model that plays the caller of a `persona` step, likewise."""
    persona_key: SecretStr | None = None

    recording: RecordingFormat = "ogg"
    """How calls are recorded: Opus in Ogg (about 0.5 MB a minute), WAV of 16 bits (5.8 MB a
    minute), or not at all."""

    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("labvoice")),
        validation_alias="LABVOICE_CACHE_DIR",
    )
    """Folder of built servers and model weights; safe to delete."""
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("labvoice")),
        validation_alias="LABVOICE_DATA_DIR",
    )
    """Folder of state that outlives a lab."""
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = "INFO"

    @field_validator("upstream_stt", "upstream_llm", "upstream_tts")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/@]+(/|#|$)", value):
            raise ValueError("must begin with http:// or https:// and hold no key")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(
            r"rediss?://([^/@]*@)?[^/@:]+(:[0-9]{1,5})?(/[0-9]*)?", value.get_secret_value()
        ):
            raise ValueError("must be redis://:PASSWORD@HOST:PORT or rediss://…")
        return value

    @field_validator("livekit_url")
    @classmethod
    def _websocket_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ws://", "wss://", "http://", "https://")):
            raise ValueError("must begin with ws:// or wss://")
        return value

    @property
    def livekit(self) -> tuple[str, str, SecretStr]:
        """Address, key and secret of the LiveKit server, where there is one."""
        assert self.livekit_url
        assert self.livekit_api_key, "load_settings() requires the key with the URL"
        assert self.livekit_api_secret, "load_settings() requires the secret with the URL"
        return self.livekit_url, self.livekit_api_key, self.livekit_api_secret

    @property
    def resolved_llm(self) -> Llm:
        """The language model, with the default applied."""
        if self.llm is not None:
            return self.llm
        return "openai" if self.openai_base_url or self.openai_api_key else "small"

    @property
    def resolved_temperature(self) -> float | None:
        """The temperature sent to the model; None: the endpoint's default applies."""
        if self.llm_temperature is None and self.resolved_llm != "openai":
            return 0.0
        return self.llm_temperature

    @property
    def resolved_min_endpointing_delay_s(self) -> float:
        """The shorter silence, in seconds, with the default applied."""
        if self.min_endpointing_delay_s is not None:
            return self.min_endpointing_delay_s
        return 0.2 if self.turn_detector == "smart-turn" else 0.3

    def secrets(self) -> list[SecretStr]:
        """The secrets that are set."""
        return [value for _, value in self if isinstance(value, SecretStr) and value]

    def masked(self, text: str) -> str:
        """Returns another program's text without the secrets of these settings."""
        for secret in self.secrets():
            text = text.replace(secret.get_secret_value(), "***")
        return text


ENV_FILE: Final = "LABVOICE_ENV_FILE"
"""Environment variable with the path of another file than `.env`; empty: no file is read."""


def env_file() -> Path | None:
    """Returns the settings file that supplements the environment; None for no file."""
    named = os.environ.get(ENV_FILE, ".env")
    return Path(named) if named else None


def read_settings(kind: type[_SettingsT], **overrides: Any) -> _SettingsT:
    """Reads settings of one kind.

    Args:
        kind: The settings' class.
        overrides: Values by field name that take precedence over the environment; None overrides
            nothing.

    Raises:
        SettingsError: A value is malformed, or there is no such setting.
    """
    if unknown := overrides.keys() - kind.model_fields:
        near = difflib.get_close_matches(min(unknown), kind.model_fields, n=1)
        raise SettingsError(
            f"there is no setting {min(unknown)!r}",
            f"did you mean {near[0]!r}?" if near else f"settings are fields of {kind.__name__}",
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        # pydantic-settings knows this argument by its underscore.
        return kind(_env_file=env_file(), **{**_set_empty(kind), **given})
    except ValidationError as error:
        # `input` is left out: it may be a secret.
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise SettingsError(
            f"a setting is malformed: {problems}",
            "correct the environment variable or the line in `.env`",
        ) from None


def _set_empty(kind: type[_SettingsT]) -> dict[str, str]:
    """Returns the settings that are explicitly empty, by field name."""
    file = env_file()
    of_file = dotenv_values(file) if file is not None else {}
    return {
        name: ""
        for name, info in kind.model_fields.items()
        if info.json_schema_extra == _MAY_BE_EMPTY
        and os.environ.get(alias := str(info.validation_alias), of_file.get(alias)) == ""
    }


def load_settings(**overrides: Any) -> Settings:
    """Reads the settings; see :func:`read_settings` for `overrides`.

    Raises:
        SettingsError: A value is malformed, or a LiveKit URL came without its key.
    """
    settings = read_settings(Settings, **overrides)
    if settings.livekit_url and not (settings.livekit_api_key and settings.livekit_api_secret):
        raise SettingsError(
            "LIVEKIT_URL is set but LIVEKIT_API_KEY or LIVEKIT_API_SECRET is not",
            "set all three, or unset LIVEKIT_URL to let labvoice start its own server",
        )
    return settings
