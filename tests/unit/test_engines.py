"""Speech engines by name: whose they are, what they need, and how others add theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from livekit.agents import stt
from livekit.plugins import deepgram, openai
from pydantic import SecretStr

from labvoice.bench.facts import columns
from labvoice.errors import SettingsError
from labvoice.lab import Lab
from labvoice.settings import Settings, load_settings
from labvoice.speech import engines

_PACKAGE = """
from livekit.agents import stt
from livekit.agents.stt import STTCapabilities
from labvoice.errors import SettingsError
from labvoice.speech.engines import Engine


class Parrot(stt.STT):
    def __init__(self, agent_name):
        super().__init__(capabilities=STTCapabilities(streaming=False, interim_results=False))
        self.agent_name = agent_name

    async def _recognize_impl(self, buffer, *, language, conn_options):
        raise NotImplementedError


def load(settings):
    return Parrot(settings.agent_name)


def check(settings):
    if settings.agent_name == "mute":
        raise SettingsError("the parrot is mute", "call it otherwise")


async def look(settings):
    return "it talks"


engine = Engine("parrot-1.0", load, check_settings=check, look=look)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers engines, as installed."""
    (tmp_path / "parrot_engine.py").write_text(_PACKAGE)
    folder = tmp_path / "parrot_engine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: parrot-engine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[labvoice.stt]\nparrot = parrot_engine:load\nparrot-engine = parrot_engine:engine\n"
        "lost = parrot_engine:nothing\n"
        "[labvoice.tts]\nparrot-voice = parrot_engine:engine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parrot_engine", raising=False)


def _settings(**fields: object) -> Settings:
    return load_settings(deepgram_api_key=None).model_copy(
        update={"stt": None, "tts": None} | fields
    )


def test_the_embedded_engines_are_the_default() -> None:
    """Without a key and a name both are embedded, local, and need their weights."""
    recogniser, voice = engines.both(_settings())
    assert (recogniser.label, voice.label) == ("moonshine-base", "piper-joe")
    assert (recogniser.weights, voice.weights) == (("moonshine-base",), ("piper-joe",))
    assert recogniser.local
    assert voice.local
    assert engines.weights_of(_settings()) == {"moonshine-base", "piper-joe", "smart-turn"}
    assert engines.weights_of(_settings(stt="tiny", turn_detector="v1-mini")) == {
        "moonshine-tiny",
        "piper-joe",
    }


def test_deepgram_is_chosen_by_its_key_where_nothing_else_is_asked_for() -> None:
    """With the key both are Deepgram's, without a name; a name goes before the key."""
    keyed = _settings(deepgram_api_key=SecretStr("key"), deepgram_base_url="http://127.0.0.1:9/")
    recogniser, voice = engines.both(keyed)
    assert (recogniser.label, voice.label) == ("deepgram", "deepgram")
    assert not recogniser.weights
    assert not voice.local
    assert isinstance(engines.stt_engine(keyed).load(keyed), deepgram.STT)
    assert isinstance(engines.tts_engine(keyed).load(keyed), deepgram.TTS)
    mixed = keyed.model_copy(update={"tts": "embedded"})
    assert [engine.label for engine in engines.both(mixed)] == ["deepgram", "piper-joe"]
    assert columns(mixed)["stt"] == "deepgram"
    assert columns(mixed)["tts"] == "piper-joe"


async def test_what_is_missing_is_told_before_anything_starts() -> None:
    """A name that nobody has, and Deepgram without a key, end the lab's start at once."""
    with pytest.raises(SettingsError, match="no engine 'whisper' for LABVOICE_STT; there are"):
        await Lab(settings=_settings(stt="whisper")).start()
    with pytest.raises(SettingsError, match="but no key is set") as caught:
        await Lab(settings=_settings(tts="deepgram")).start()
    assert "DEEPGRAM_API_KEY" in caught.value.hint


@pytest.mark.usefixtures("package")
async def test_a_package_registers_an_engine_by_entry_point() -> None:
    """An entry point names an engine, or just what loads it; it gets the settings."""
    plain = engines.stt_engine(_settings(stt="parrot"))
    assert (plain.label, plain.local, plain.weights) == ("parrot", False, ())
    polly = _settings(stt="parrot", agent_name="polly")
    loaded = engines.stt_engine(polly).load(polly)
    assert isinstance(loaded, stt.STT)
    assert vars(loaded)["agent_name"] == "polly"
    whole = _settings(stt="parrot-engine", tts="parrot-voice")
    assert engines.stt_engine(whole).label == "parrot-1.0"
    assert (
        await engines.look(whole) == "recogniser parrot-1.0: it talks; voice parrot-1.0: it talks"
    )
    with pytest.raises(SettingsError, match="the parrot is mute"):
        engines.stt_engine(_settings(stt="parrot-engine", agent_name="mute"))
    with pytest.raises(SettingsError, match="'lost' cannot be imported from parrot_engine:nothing"):
        engines.stt_engine(_settings(stt="lost"))
    with pytest.raises(SettingsError, match="parrot-engine"):  # it is among those that there are
        engines.stt_engine(_settings(stt="other"))


def test_a_livekit_plugin_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`plugin:NAME?option=value` makes what the package offers, with the options as they are."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    chosen = _settings(
        stt="plugin:openai?model=whisper-1&detect_language=true", tts="plugin:openai"
    )
    recogniser = engines.stt_engine(chosen).load(chosen)
    assert isinstance(recogniser, openai.STT)
    assert recogniser.model == "whisper-1"
    assert isinstance(engines.tts_engine(chosen).load(chosen), openai.TTS)
    assert engines.tts_engine(chosen).label == "plugin:openai"
    assert engines.tts_engine(chosen).imports == ("livekit.plugins.openai",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plugin:nobody", "no LiveKit plugin 'nobody' is installed"),
        ("plugin:", "no LiveKit plugin '' is installed"),
        ("plugin:silero", "does not recognise: it has no STT"),
        ("plugin:openai?colour=red", "'openai' cannot be used: .*colour"),
    ],
)
def test_a_plugin_that_cannot_serve_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    """What is not installed, does something else or refuses its options is a settings error."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    chosen = _settings(stt=name)
    with pytest.raises(SettingsError, match=words):
        engines.stt_engine(chosen).load(chosen)
