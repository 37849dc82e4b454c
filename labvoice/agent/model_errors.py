"""Why the language model did not answer, in its endpoint's own words; the caller asks for it."""

from __future__ import annotations

from typing import Any

from livekit.agents import (
    AgentSession,
    APIStatusError,
    ConversationItemAddedEvent,
    ErrorEvent,
    UserStateChangedEvent,
    llm,
)

from labvoice.protocol.model_errors import sentence_of
from labvoice.settings import Settings


class ModelErrors:
    """Keeps the model's last error of the turn that is under way.

    Args:
        settings: Their secrets are masked.

    Attributes:
        sentence: What went wrong; empty where nothing did since the user spoke last.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.sentence = ""

    def follow(self, session: AgentSession[Any]) -> None:
        """Listens to a session's errors, and forgets them when it replies or the user speaks."""
        session.on("error", self._on_error)
        session.on("user_state_changed", self._on_user_state)
        session.on("conversation_item_added", self._on_item)

    def describe(self, error: object) -> str:
        """Returns an error of the session's as a sentence without secrets; empty for others."""
        if not isinstance(error, llm.LLMError):
            return ""
        cause = error.error
        if isinstance(cause, APIStatusError):
            said = f"the model refused: {sentence_of(cause.body or cause.message)}"
        else:
            said = f"the model did not answer: {cause}"
        return self._settings.masked(said)

    def _on_error(self, event: ErrorEvent) -> None:
        self.sentence = self.describe(event.error) or self.sentence

    def _on_user_state(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self.sentence = ""

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, llm.ChatMessage) and event.item.role == "assistant":
            self.sentence = ""
