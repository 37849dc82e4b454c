"""What the environment may say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from labvoice.errors import SettingsError
from labvoice.lab import Lab
from labvoice.settings import DEFAULT_AGENT_NAME, ENV_FILE, load_settings
from labvoice.stack.workers.worker import worker_environment
from labvoice.targets.target import Target


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("LABVOICE_LLM", raising=False)
    monkeypatch.chdir(str(tmp_path))


def test_nothing_needs_to_be_set() -> None:
    """Without any setting everything is embedded."""
    settings = load_settings()
    assert settings.livekit_url is None
    assert settings.resolved_llm == "small"
    assert settings.agent_name == "letta-voice-agent"


def test_an_openai_key_means_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured endpoint replaces the embedded model, unless LABVOICE_LLM says otherwise."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert load_settings().resolved_llm == "openai"
    assert load_settings(llm="paced").resolved_llm == "paced"
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert load_settings().resolved_llm == "openai"


def test_a_url_without_its_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three LiveKit settings come together or not at all."""
    monkeypatch.setenv("LIVEKIT_URL", "ws://127.0.0.1:7880")
    with pytest.raises(SettingsError, match="LIVEKIT_API_KEY"):
        load_settings()


def test_a_malformed_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, and never shows a value, which may be a secret."""
    monkeypatch.setenv("LIVEKIT_URL", "my-secret-host")
    with pytest.raises(SettingsError, match="LIVEKIT_URL") as caught:
        load_settings()
    assert "my-secret-host" not in str(caught.value)


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret shows in the settings' text."""
    for name in ("LIVEKIT_API_SECRET", "OPENAI_API_KEY", "DEEPGRAM_API_KEY"):
        monkeypatch.setenv(name, "hush-hush")
    assert "hush-hush" not in repr(load_settings())


def test_dotenv_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` in the working directory counts; the environment wins over it."""
    with open(".env", "w", encoding="utf-8") as file:
        file.write("LABVOICE_AGENT_NAME=from-file\nUNRELATED=1\n")
    assert load_settings().agent_name == "from-file"
    monkeypatch.setenv("LABVOICE_AGENT_NAME", "from-environment")
    assert load_settings().agent_name == "from-environment"


def test_another_file_may_be_named_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LABVOICE_ENV_FILE names the file that is read in place of `.env`; empty, none is."""
    Path(".env").write_text("LABVOICE_AGENT_NAME=from-here\n", encoding="utf-8")
    other = tmp_path / "other.env"
    other.write_text("LABVOICE_AGENT_NAME=from-there\n", encoding="utf-8")
    monkeypatch.setenv(ENV_FILE, str(other))
    assert load_settings().agent_name == "from-there"
    monkeypatch.setenv(ENV_FILE, "")
    assert load_settings().agent_name == DEFAULT_AGENT_NAME


def test_a_worker_gets_the_labs_settings_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lab left unset stays unset in its workers, whatever environment and `.env` say."""
    Path(".env").write_text("OPENAI_API_KEY=sk-file\nDEEPGRAM_API_KEY=file\n", encoding="utf-8")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    unset = {"openai_api_key": None, "deepgram_api_key": None}
    settings = load_settings(llm="paced").model_copy(update=unset)
    environment = worker_environment(settings)
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    there = load_settings()
    assert there.openai_api_key is None
    assert there.deepgram_api_key is None
    assert there.resolved_llm == "paced"


def test_an_option_that_was_not_given_overrides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, as an option that was not given is handed on, leaves the environment in force."""
    monkeypatch.setenv("LABVOICE_LLM", "paced")
    monkeypatch.setenv("LABVOICE_AGENT_NAME", "mine")
    settings = load_settings(llm=None, agent_name=None)
    assert (settings.llm, settings.agent_name) == ("paced", "mine")
    assert load_settings(llm="small").llm == "small"


@pytest.mark.parametrize("given", [Lab, Target.own, load_settings])
def test_a_setting_that_there_is_not_is_refused(given: Callable[..., object]) -> None:
    """A misspelt setting is named with the one that is meant, not silently left out."""
    with pytest.raises(SettingsError, match="no setting 'greetin'") as caught:
        given(greetin="Good morning.")
    assert "'greeting'" in caught.value.hint


@pytest.mark.parametrize("name", ["LABVOICE_GREETING", "LABVOICE_APOLOGY"])
def test_what_the_agent_says_can_be_set_to_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An empty value is silence, from the environment, `.env`, code, and in the worker as well."""
    field = name.removeprefix("LABVOICE_").lower()
    assert getattr(load_settings(), field)
    monkeypatch.setenv(name, "")
    assert getattr(load_settings(), field) == ""
    monkeypatch.delenv(name)
    Path(".env").write_text(f"{name}=\nLABVOICE_LLM=\n", encoding="utf-8")
    settings = load_settings()
    assert getattr(settings, field) == ""
    assert settings.llm is None
    assert getattr(load_settings(**{field: ""}), field) == ""
    for key, value in worker_environment(settings).items():
        monkeypatch.setenv(key, value)
    assert getattr(load_settings(), field) == ""
