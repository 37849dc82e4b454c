"""Errors over HTTP: each is `{"error": {"code", "message", "hint"}}` under a fitting status."""

from __future__ import annotations

import re
from typing import Final

from labvoice.errors import (
    CredentialsError,
    DispatchError,
    LabvoiceError,
    ServerAnswerError,
    ServerUnreachableError,
    StageTimeoutError,
    UsageError,
)

_DISPATCH_STATUS: Final = {
    "no_worker": 503,
    "worker_full": 503,
    "name_mismatch": 404,
    "rejected": 422,
    "join_timeout": 504,
    "duplicate_agent": 409,
    "agent_lost": 502,
}
_STATUS: Final = (
    (UsageError, 422),
    (ServerUnreachableError, 502),
    (ServerAnswerError, 502),
    (CredentialsError, 502),
    (StageTimeoutError, 504),
)
CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}
"""Codes of the errors that the framework finds, by status; others are `error`."""


class HttpError(LabvoiceError):
    """A request that is answered with an error of the service's own."""

    def __init__(
        self,
        status: int,
        code: str,
        observed: str,
        hint: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.headers = headers or {}
        super().__init__(observed, hint)


def no_letta() -> UsageError:
    """Returns the refusal of a Letta agent where there is no Letta."""
    return UsageError(
        "a Letta agent was asked for, and this lab runs without Letta",
        "leave `letta_agent_id` out, or start `labvoice up` without `--no-letta`",
    )


def status_of(error: LabvoiceError) -> int:
    """Returns the HTTP status that fits an error."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, DispatchError):
        return _DISPATCH_STATUS.get(error.outcome, 502)
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(code: str, message: str, hint: str = "") -> dict[str, dict[str, str]]:
    """Returns the body of an error's answer.

    Only the first paragraph is sent: the rest may be lines of a log.
    """
    fields = {"code": code, "message": message.partition("\n\n")[0], "hint": hint}
    # JSON input may hold lone surrogates, and UTF-8 output may not.
    return {
        "error": {name: text.encode("utf-8", "replace").decode() for name, text in fields.items()}
    }


def body_of(error: LabvoiceError) -> dict[str, dict[str, str]]:
    """Returns the response body of an error; the code of a `NoWorkerError` is `no_worker`."""
    name = type(error).__name__.removesuffix("Error")
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    own = error.code if isinstance(error, HttpError) else code
    return error_body(own, error.observed, error.hint)
