"""Dispatch strategies: when the agent is dispatched, relative to the user's click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from labvoice.errors import UsageError

StrategyName = Literal["sequential", "concurrent", "token", "ahead", "automatic"]
"""How a call gets its agent:

- `sequential`: the caller connects, then dispatches.
- `concurrent`: the dispatch goes out while the caller connects.
- `token`: the caller's access token names the agent, and the server dispatches it as it makes
  the room. A room that exists already ignores that; the caller then dispatches by itself.
- `ahead`: dispatched before the click, when a page is opened or a call is expected. An agent
  that nobody joins leaves after `LABVOICE_IDLE_TIMEOUT_S`.
- `automatic`: a worker without a name serves every room; nobody dispatches.
"""


@dataclass(frozen=True)
class Strategy:
    """A dispatch strategy, as the caller, the token, the browser and the menu use it.

    Attributes:
        name: Name that the user gives.
        when: `after` the microphone is on, `during` the connecting, by the `token` or the server
            alone, or `ahead` of the click; as in `js/src/types.ts`.
        title: For the menu.
        in_token: Whether the caller's token names the agent.
        every_room: Whether it needs a worker without a name, which serves every room.
        missed: Notice if the server did not dispatch as expected; a format string with `room`.
    """

    name: StrategyName
    when: Literal["after", "during", "token", "ahead"]
    title: str
    in_token: bool = False
    every_room: bool = False
    missed: str = ""

    @property
    def by_server(self) -> bool:
        """Whether the server dispatches as the caller connects."""
        return self.when == "token"

    def dispatched_as(self, agent_name: str) -> str:
        """Returns the name to dispatch; empty for a worker that serves every room."""
        return "" if self.every_room else agent_name


_ALL: Final = (
    Strategy("sequential", "after", "After the microphone is on"),
    Strategy("concurrent", "during", "While the browser connects"),
    Strategy(
        "token",
        "token",
        "By the access token",
        in_token=True,
        missed="room {room!r} existed already, so the server ignored the agent that the token "
        "names; it was dispatched explicitly",
    ),
    Strategy("ahead", "ahead", "Before the click"),
    Strategy(
        "automatic",
        "token",
        "By a worker that serves every room",
        every_room=True,
        missed="the server had dispatched nobody to room {room!r} by itself",
    ),
)
STRATEGIES: Final[dict[str, Strategy]] = {each.name: each for each in _ALL}
"""All strategies by name."""


_AHEAD_MARGIN_S: Final = 10.0
"""Seconds before the idle timeout of an agent dispatched ahead at which it is dispatched again."""


def ahead_lifetime_s(idle_timeout_s: float) -> float:
    """Returns how long a page may rely on an agent dispatched ahead, in seconds.

    Args:
        idle_timeout_s: Time after which an agent alone in a room leaves
            (`LABVOICE_IDLE_TIMEOUT_S`).
    """
    return max(1.0, idle_timeout_s - _AHEAD_MARGIN_S)


def strategy_of(name: str) -> Strategy:
    """Returns the strategy of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in STRATEGIES:
        raise UsageError(f"there is no strategy {name!r}", f"one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
