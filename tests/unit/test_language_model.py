"""A language model that judges or plays the caller; what it gets wrong is no crash."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from labvoice.errors import ModelError, UsageError
from labvoice.scenarios.language_model import LanguageModel, judge, next_line
from labvoice.stack.processes import free_port
from tests.scripted_judge import ScriptedJudge
from tests.serving import serving

TALK = [("agent", "Hello."), ("caller", "I am Ann."), ("tool", "find() returned 'x'")]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedJudge]:
    """A scripted model."""
    running = ScriptedJudge()
    async with serving(running.server.app, running.port):
        yield running


@pytest.fixture
def model(server: ScriptedJudge) -> LanguageModel:
    """The model as a user configures it."""
    return LanguageModel.of(f"{server.base_url}#any", SecretStr("key"), "LABVOICE_JUDGE", "a test")


async def test_a_judge_says_yes_or_no_and_why(model: LanguageModel, server: ScriptedJudge) -> None:
    """It sees the whole conversation, tools included."""
    yes = await judge(model, "it is true", TALK)
    no = await judge(model, "it is false", TALK)
    assert (yes.passed, yes.reason) == (True, "The agent said so.")
    assert (no.passed, no.reason) == (False, "The agent never said so.")
    assert "caller: I am Ann.\ntool: find()" in server.asked[0][-1]["content"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("it is nonsense", "gave no verdict, but 'Well, that depends.'"),
        ("it is half", "gave no verdict"),
        ("it is nothing", "answered nothing"),
    ],
)
async def test_nonsense_and_nothing_are_no_verdict(
    model: LanguageModel, statement: str, words: str
) -> None:
    """The error names the model and what it answered."""
    with pytest.raises(ModelError, match=words):
        await judge(model, statement, TALK)


async def test_a_judge_that_is_not_there_is_named() -> None:
    """A wrong address is an error of its own."""
    model = LanguageModel(f"http://127.0.0.1:{free_port()}/v1", "any")
    with pytest.raises(ModelError, match="the language model any does not answer"):
        await judge(model, "it is true", TALK)


async def test_a_caller_says_its_next_line_until_it_hangs_up(
    model: LanguageModel, server: ScriptedJudge
) -> None:
    """The agent's words are the user's in its conversation; the sign to hang up is not spoken."""
    assert await next_line(model, "You are Ann.", []) == (
        "I would like to change my appointment.",
        False,
    )
    line, over = await next_line(model, "You are Ann.", [*TALK, ("agent", "Which day?")])
    assert (line, over) == ("Thank you, goodbye.", True)
    assert [each["role"] for each in server.asked[1]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("text", [None, "", "http://127.0.0.1:1/v1"])
def test_a_model_that_is_not_configured_is_asked_for(text: str | None) -> None:
    """With the variable that names it."""
    with pytest.raises(UsageError, match="LABVOICE_JUDGE"):
        LanguageModel.of(text, None, "LABVOICE_JUDGE", "`judge`")
