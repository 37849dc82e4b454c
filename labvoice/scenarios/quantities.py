"""Durations, bounds and patterns in scenario files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

FROM_FILE: Final = {"from_file": True}
"""Validation context of a scenario file: there a duration has its unit, and is no bare number."""

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "min": 60.0}
_NUMBER: Final = r"\d+(?:\.\d+)?"
_DURATION: Final = rf"{_NUMBER} ?(?:ms|s|min)"
_LIKE_THIS: Final = "write it like `1.5 s`, `800 ms` or `2 min`"


def read_duration(text: str) -> float:
    """Returns a duration in seconds.

    Raises:
        ValueError: It is not written like `1.5 s`, `800 ms` or `2 min`.
    """
    found = re.fullmatch(rf"({_NUMBER}) ?(ms|s|min)", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration: {_LIKE_THIS}")
    return float(found[1]) * _UNITS_S[found[2]]


def _number(value: Any, info: ValidationInfo, unit: bool = True) -> float | None:
    """Returns a number as Python code gives it; None of a text."""
    if isinstance(value, str):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is neither text nor a number")
    if unit and info.context == FROM_FILE:
        raise ValueError(f"{value!r} has no unit: {_LIKE_THIS}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is negative or not finite")
    return float(value)


def _after(word: str, text: str) -> str:
    """Returns what follows the word that a bound begins with."""
    begin, _, rest = text.strip().partition(" ")
    if begin != word:
        raise ValueError(f"{text!r} does not begin with `{word}`")
    return rest.strip()


def _duration(take: Callable[[str], str]) -> BeforeValidator:
    """Reads a number of seconds, or a text of which a function takes the duration."""

    def read(value: Any, info: ValidationInfo) -> float:
        given = _number(value, info)
        return read_duration(take(value)) if given is None else given

    return BeforeValidator(read)


def _below_share(value: Any, info: ValidationInfo) -> float:
    given = _number(value, info, unit=False)
    if given is not None:
        return given
    rest = _after("below", value)
    if not re.fullmatch(rf"{_NUMBER}( ?%)?", rest):
        raise ValueError(f"{value!r} is no bound: write it like `below 0.1` or `below 10 %`")
    return float(rest.removesuffix("%")) / (100 if rest.endswith("%") else 1)


def check_argument(value: Any) -> Any:
    """Checks an argument that a tool must have been given: a text is a pattern, or `*`."""
    return _pattern(value) if isinstance(value, str) and value != "*" else value


def _pattern(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text: write a regular expression in quotes")
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"the pattern {value!r} does not compile: {error.msg} at position {error.pos}"
        ) from None
    return value


def _text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", "examples": [example]})


Seconds = Annotated[float, _duration(str.strip), _text(_DURATION, "1.5 s")]
"""A duration: `1.5 s`, `800 ms`; in Python a number of seconds."""
Within = Annotated[
    float, _duration(partial(_after, "within")), _text(f"within {_DURATION}", "within 2 s")
]
"""The longest time that something may take: `within 2 s`; in Python a number of seconds."""
BelowSeconds = Annotated[
    float, _duration(partial(_after, "below")), _text(f"below {_DURATION}", "below 1.5 s")
]
"""A bound of a latency: `below 1.5 s`; in Python a number of seconds."""
BelowShare = Annotated[
    float, BeforeValidator(_below_share), _text(rf"below {_NUMBER}( ?%)?", "below 10 %")
]
"""A bound of a share: `below 0.1`, `below 10 %`; in Python a number, of which 1 is the whole."""
IntoReply = Annotated[
    float,
    _duration(lambda text: re.sub(r" of the (reply|greeting)$", "", text.strip())),
    _text(rf"{_DURATION}( of the (reply|greeting))?", "0.9 s of the reply"),
]
"""A time since the agent began to speak: `0.9 s of the reply`; in Python a number of seconds."""
Pattern = Annotated[str, BeforeValidator(_pattern), WithJsonSchema({"type": "string"})]
"""A regular expression of Python's, searched for without regard to case."""
