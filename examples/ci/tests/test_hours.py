"""Tests of the agent's own functions, which need no call."""

from agent import hours_of


def test_the_clinic_is_closed_on_sunday() -> None:
    """Case does not matter."""
    assert hours_of("Sunday") == "closed"
