"""How a finished voice turn is written down for Letta, and how its user's part is read back."""

from __future__ import annotations

import re
from typing import Final

_TURN: Final = re.compile(r"<turn>\s*<user>(?P<user>.*?)</user>.*</turn>", re.DOTALL)


def turn_text(user_text: str, agent_text: str) -> str:
    """Returns the message that tells Letta of one finished turn."""
    user, agent = (text.replace("<", "‹").strip() for text in (user_text, agent_text))
    return f"<turn>\n<user>{user}</user>\n<agent>{agent}</agent>\n</turn>"


def user_part(message: str) -> str:
    """Returns what the user said: of a turn written by :func:`turn_text`, or the whole text."""
    turn = _TURN.search(message)
    return turn["user"] if turn else message
