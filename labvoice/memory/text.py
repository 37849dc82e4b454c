"""Text format of a finished voice turn in Letta."""

from __future__ import annotations

import re
from typing import Final

_TURN: Final = re.compile(r"<turn>\s*<user>(?P<user>.*?)</user>.*</turn>", re.DOTALL)


def turn_text(user_text: str, agent_text: str) -> str:
    """Returns Letta's message for one finished turn."""
    user, agent = (text.replace("<", "‹").strip() for text in (user_text, agent_text))
    return f"<turn>\n<user>{user}</user>\n<agent>{agent}</agent>\n</turn>"


def user_part(message: str) -> str:
    """Returns the user's text of a turn written by :func:`turn_text`, or the whole text."""
    turn = _TURN.search(message)
    return turn["user"] if turn else message
