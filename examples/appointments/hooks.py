"""What the scenarios check after a call."""

from typing import Any


def appointment_is_moved(result: Any) -> None:
    """The appointment was moved to Tuesday, once, by the tool."""
    moved = [tool for tool in result.tools if tool.name == "move_appointment"]
    assert [tool.arguments["day"] for tool in moved] == ["Tuesday the third"]
    assert not moved[0].failed
