"""What is asked of somebody else's model, and what is told where it refuses."""

from __future__ import annotations

import pytest

from labvoice.agent.session import load_llm
from labvoice.settings import load_settings


@pytest.mark.parametrize(
    ("llm", "temperature", "sent"),
    [("openai", None, None), ("openai", 1.0, 1.0), ("small", None, 0.0), ("paced", 0.5, 0.5)],
)
def test_a_temperature_is_sent_only_where_it_was_asked_for(
    llm: str, temperature: float | None, sent: float | None
) -> None:
    """Reasoning models refuse another temperature than their own; labvoice's own models get 0."""
    model = load_llm(load_settings(llm=llm, llm_temperature=temperature))
    given = model._opts.temperature  # type: ignore[attr-defined]  # no public name
    assert (given if isinstance(given, float) else None) == sent
