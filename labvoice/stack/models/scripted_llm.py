"""The scripted LLM: a script behind OpenAI's HTTP API that writes stated facts to Letta's memory.

An offline Letta uses it as its model. It matches the user's last message against the patterns
below, writes each new statement with Letta's tool `core_memory_append`, and ends the turn with a
fixed sentence. It is no language model: it recognises nothing else and corrects nothing that it
wrote. A configured model replaces it. Run as `python -m labvoice.stack.models.scripted_llm PORT`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from labvoice.memory.text import user_part
from labvoice.stack.models.openai_http import ChatRequest, ChatServer, ToolCall, text_of

MODEL: Final = "scripted-llm"
TOOL: Final = "core_memory_append"
BLOCK: Final = "human"
NOTED: Final = "I have made a note of that."
NOTHING: Final = "Understood."
FAILED: Final = "I could not make a note of that."
# Letta asks for it as vLLM reports it, and summarises long histories by it.
_CONTEXT_TOKENS: Final = 32768
_MAX_VALUE_WORDS: Final = 12

_WORDS: Final = re.compile(r"\S+\s*")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE: Final = re.compile(r",?\s+(?:and|but)\s+(?=(?:i|i'm|my)\b)|;\s*", re.IGNORECASE)
_LEAD_IN: Final = re.compile(
    r"^(?:(?:well|so|oh|ok|okay|yes|yeah|no|hi|hello|hey|actually|also|please|by the way|and|but)"
    r"\b[,.!]?\s*)+",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"<[^<>]*>")  # Letta frames the blocks in its prompt so
_QUESTION: Final = re.compile(
    r"^(?:what|who|whose|whom|which|where|when|why|how|is|are|am|was|were|do|does|did|can|could"
    r"|would|will|should|shall|have|has|may|might|tell me|if|unless|suppose|imagine)\b",
    re.IGNORECASE,
)
_NO_VALUE: Final = re.compile(
    r"^(?:not|that|this|it|its|you|your|him|her|them|what|when|how|why|so|to|if|there)\b",
    re.IGNORECASE,
)
# "My question is …" introduces something else; it states no lasting fact.
_NO_THING: Final = re.compile(
    r"\b(?:question|problem|point|guess|idea|answer|issue|concern|thing|bad|turn|feeling)$",
    re.IGNORECASE,
)


def _owned(match: re.Match[str]) -> str:
    thing = match["thing"].casefold()
    return (
        "" if _NO_THING.search(thing) else f"The user's {thing} {match['verb']} {match['value']}."
    )


def _named(match: re.Match[str]) -> str:
    return f"The user's {match['thing'].casefold()} is called {match['value']}."


_PATTERNS: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = tuple(
    (re.compile(rf"^{pattern}$", re.IGNORECASE), form)
    for pattern, form in (
        (
            r"(?:(?:can|could|will|would) you )?(?:remember|note|don't forget) that (?P<value>.+)",
            lambda m: f"The user asked to remember: {m['value']}.",
        ),
        (r"my name(?:'s| is) (?P<value>.+)", lambda m: f"The user's name is {m['value']}."),
        (r"(?:i am|i'm) called (?P<value>.+)", lambda m: f"The user's name is {m['value']}."),
        (r"my (?P<thing>[\w' -]+?)(?:'s name is| is called| is named) (?P<value>.+)", _named),
        (r"i live (?P<value>(?:in|at|near|on) .+)", lambda m: f"The user lives {m['value']}."),
        (r"(?:i am|i'm) from (?P<value>.+)", lambda m: f"The user is from {m['value']}."),
        (r"i work (?P<value>(?:as|at|for|in) .+)", lambda m: f"The user works {m['value']}."),
        (
            r"(?:i am|i'm) allergic to (?P<value>.+)",
            lambda m: f"The user is allergic to {m['value']}.",
        ),
        (
            r"i (?:really |also )?(?P<verb>like|love|enjoy|prefer) (?P<value>.+)",
            lambda m: f"The user {m['verb'].casefold()}s {m['value']}.",
        ),
        (
            r"i (?:really )?(?:don't like|do not like|dislike|hate) (?P<value>.+)",
            lambda m: f"The user dislikes {m['value']}.",
        ),
        (
            r"i have (?P<value>(?:a|an|one|two|three|four|five) .+)",
            lambda m: "" if _NO_THING.search(m["value"]) else f"The user has {m['value']}.",
        ),
        (r"my (?P<thing>[\w'-]+(?: [\w'-]+){0,3}?) (?P<verb>is|are) (?P<value>.+)", _owned),
    )
)


def facts(message: str) -> list[str]:
    """Returns what the user states in a message, one sentence each; nothing for questions."""
    found: list[str] = []
    for sentence in _SENTENCE_END.split(message.replace("’", "'")):
        if sentence.rstrip().endswith("?") and "remember that" not in sentence.casefold():
            continue
        opening = _LEAD_IN.sub("", sentence.strip())
        if _PATTERNS[0][0].match(opening):  # it asks to remember
            clauses = [opening]
        elif _QUESTION.match(opening):
            continue
        else:
            clauses = _CLAUSE.split(opening)
        for clause in clauses:
            fact = _fact(_LEAD_IN.sub("", clause.strip()).strip(" .,!?"))
            if fact and _plain(fact) not in map(_plain, found):
                found.append(fact)
    return found


def _fact(clause: str) -> str:
    for pattern, form in _PATTERNS:
        match = pattern.match(clause)
        if match is None:
            continue
        value = match["value"]
        if pattern is not _PATTERNS[0][0] and (
            _NO_VALUE.match(value) or len(value.split()) > _MAX_VALUE_WORDS
        ):
            return ""
        return form(match)
    return ""


def _plain(text: str) -> str:
    """Returns words only, so that a change of case or punctuation does not add a second fact."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def reply(chat: ChatRequest) -> ToolCall | str:
    """Returns its next message: a call of Letta's tool, or the closing sentence."""
    last_user = max(
        (i for i, message in enumerate(chat.messages) if message.get("role") == "user"), default=-1
    )
    if last_user < 0:
        return NOTHING
    filed = [
        call["function"].get("arguments", "")
        for message in chat.messages[last_user + 1 :]
        for call in message.get("tool_calls") or ()
    ]
    # One tool round per message, regardless of the tool's answer: no loop on a refusal.
    if filed:
        refused = any(_refusal(message) for message in chat.messages[last_user + 1 :])
        return FAILED if refused else NOTED
    offered = {tool.get("function", {}).get("name") for tool in chat.tools or ()}
    system = (m for m in chat.messages if m.get("role") in {"system", "developer"})
    known = {
        _plain(sentence)
        for message in system
        for line in _TAG.sub("\n", text_of(message)).splitlines()
        for sentence in (line, *_SENTENCE_END.split(line))
    }
    new = [
        fact
        for fact in facts(user_part(text_of(chat.messages[last_user])))
        if _plain(fact) not in known
    ]
    if not new or TOOL not in offered:
        return NOTHING
    return ToolCall(TOOL, {"label": BLOCK, "content": "\n".join(new)})


def _refusal(message: dict[str, Any]) -> bool:
    """Whether this is a tool's error result, as Letta wraps it."""
    if message.get("role") != "tool":
        return False
    try:
        answer = json.loads(text_of(message))
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("status") == "Failed"


async def answer(chat: ChatRequest, _: float) -> AsyncIterator[str | ToolCall]:
    """Yields the message: a tool call at once, a sentence word by word."""
    message = reply(chat)
    for token in [message] if isinstance(message, ToolCall) else _WORDS.findall(message):
        yield token


server: Final = ChatServer(MODEL, answer, context_tokens=_CONTEXT_TOKENS)

if __name__ == "__main__":
    server.run(int(sys.argv[1]))
