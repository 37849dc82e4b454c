"""Structured logs: one JSON object a line, with room, job and dispatch ids, without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from pydantic import SecretStr

HIDDEN: Final = "[hidden]"
_LOGGERS: Final = ("labvoice", "uvicorn")


def log_event(logger: logging.Logger, level: int, event: str, **facts: Any) -> None:
    """Logs an event with its facts; those that are None or empty are left out."""
    kept = {name: value for name, value in facts.items() if value not in (None, "")}
    logger.log(level, event, extra={"facts": kept})


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object.

    Args:
        secrets: What must never be written, whatever a message holds.
    """

    def __init__(self, secrets: Iterable[SecretStr | None] = ()) -> None:
        super().__init__()
        self._secrets = [form for s in secrets if s and s.get_secret_value() for form in _forms(s)]

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _forms(secret: SecretStr) -> list[str]:
    """A secret as it is, and as JSON and Python's `repr` inside JSON write it, longest first."""
    plain = secret.get_secret_value()
    once = json.dumps(plain)[1:-1]
    told = json.dumps(repr(plain)[1:-1])[1:-1]
    return sorted({plain, once, told, json.dumps(once)[1:-1]}, key=len, reverse=True)


def set_up_logs(stream: TextIO, secrets: Iterable[SecretStr | None]) -> None:
    """Sends the service's logs to a stream, one JSON object a line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(secrets))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
