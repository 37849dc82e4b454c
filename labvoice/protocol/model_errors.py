"""What an OpenAI-compatible endpoint says where it refuses a request, and what to do about it."""

from __future__ import annotations

import contextlib
import json
from typing import Final

_LONGEST: Final = 500
"""Characters that are kept of an answer that is no sentence, such as a page of HTML."""


def sentence_of(answer: object) -> str:
    """Returns an endpoint's own sentence.

    Args:
        answer: Body of its answer, as text or decoded: OpenAI's form, with or without the outer
            `error`, or any other.
    """
    if isinstance(answer, str):
        with contextlib.suppress(ValueError):
            answer = json.loads(answer)
    if isinstance(answer, dict):
        answer = answer.get("error", answer)
    if isinstance(answer, dict):
        answer = answer.get("message", answer)
    return str(answer or "").strip()[:_LONGEST] or "no reason given"


def refusal_hint(sentence: str, otherwise: str) -> str:
    """Returns what to do about a refusal.

    Args:
        sentence: The endpoint's own.
        otherwise: The hint where the sentence names no setting of labvoice's.
    """
    if "temperature" in sentence:
        return "set LABVOICE_LLM_TEMPERATURE to what it takes, or leave it unset"
    return otherwise
