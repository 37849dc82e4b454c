"""An OpenAI-compatible language model that judges a conversation or plays the caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from labvoice.errors import ModelError, UsageError
from labvoice.proxies import http_client

_TIMEOUT_S: Final = 60.0
_SHOWN: Final = 200
HANG_UP_SIGN: Final = "[hang up]"

_JUDGE: Final = (
    "You judge a phone call between a caller and an agent. You get its transcript and one "
    "statement. Decide whether the statement is true of the call. Answer with a JSON object and "
    'nothing else: {"passed": true or false, "reason": "one sentence"}.'
)
_PERSONA: Final = (
    "You play the caller in a phone call. Stay in this role:\n\n{persona}\n\nAnswer with the words "
    "that the caller says next and nothing else: one or two short spoken sentences, no lists, no "
    f"stage directions. When the call is over, write {HANG_UP_SIGN}."
)
_SILENT: Final = "(the agent says nothing)"


class Verdict(BaseModel):
    """What a judge says.

    Attributes:
        passed: Whether the statement is true of the conversation.
    """

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class LanguageModel:
    """An OpenAI-compatible model.

    Attributes:
        base_url: Its address, ending in `/v1`.
        name: Its name there.
        key: Its key; None if it needs none.
    """

    base_url: str
    name: str
    key: SecretStr | None = None

    @classmethod
    def of(cls, text: str | None, key: SecretStr | None, variable: str, what: str) -> LanguageModel:
        """Reads `URL#MODEL`.

        Args:
            text: As configured; None if nothing is.
            variable: The variable that configures it.

        Raises:
            UsageError: Nothing is configured, or no model is named.
        """
        base_url, _, name = (text or "").partition("#")
        if not base_url or not name:
            raise UsageError(
                f"{what} needs a language model, and {variable} names none",
                f"such as {variable}=https://api.openai.com/v1#gpt-4.1-mini, and {variable}_KEY",
            )
        return cls(base_url.rstrip("/"), name, key)

    async def answer(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns what it answers.

        Raises:
            ModelError: It does not answer, refuses, or answers nothing.
        """
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {}
        body = {"model": self.name, "messages": list(messages)}
        try:
            async with http_client(self.base_url, timeout=_TIMEOUT_S) as client:
                response = await client.post(
                    f"{self.base_url}/chat/completions", json=body, headers=headers
                )
        except httpx.HTTPError as error:
            raise ModelError(
                f"{self} does not answer: {error or type(error).__name__}", "check its address"
            ) from None
        if not response.is_success:
            raise ModelError(
                f"{self} answered HTTP {response.status_code}: {response.text[:_SHOWN]}",
                "check its name and key",
            )
        try:
            content: Any = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise ModelError(f"{self} answered no chat completion") from None
        if not isinstance(content, str) or not content.strip():
            raise ModelError(f"{self} answered nothing")
        return content.strip()

    def __str__(self) -> str:
        return f"the language model {self.name}"


async def judge(
    model: LanguageModel, statement: str, conversation: Sequence[tuple[str, str]]
) -> Verdict:
    """Asks a model whether a statement is true of a conversation.

    Args:
        statement: What should be true.
        conversation: Who said what.

    Raises:
        ModelError: It does not answer, or its answer is no verdict.
    """
    transcript = "\n".join(f"{who}: {words}" for who, words in conversation) or "(nobody spoke)"
    text = await model.answer(
        [
            {"role": "system", "content": _JUDGE},
            {"role": "user", "content": f"Transcript:\n{transcript}\n\nStatement:\n{statement}"},
        ]
    )
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        return Verdict.model_validate_json(found[0] if found else "", strict=True)
    except ValidationError:
        raise ModelError(f"{model} gave no verdict, but {text[:_SHOWN]!r}") from None


async def next_line(
    model: LanguageModel, persona: str, conversation: Sequence[tuple[str, str]]
) -> tuple[str, bool]:
    """Returns the next line of a model that plays the caller.

    Args:
        persona: Who it is and what it wants.
        conversation: Who said what so far.

    Returns:
        Its words, and whether it hangs up after them.

    Raises:
        ModelError: It does not answer.
    """
    messages = [{"role": "system", "content": _PERSONA.format(persona=persona)}]
    spoken = [(who, words) for who, words in conversation if who != "tool"]
    if not spoken or spoken[-1][0] == "caller":
        spoken.append(("agent", _SILENT))
    for who, words in spoken:
        messages.append({"role": "assistant" if who == "caller" else "user", "content": words})
    text = await model.answer(messages)
    words, sign, _ = text.partition(HANG_UP_SIGN)
    return words.strip().strip('"'), bool(sign)
