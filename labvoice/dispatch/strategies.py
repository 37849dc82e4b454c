"""When the agent is dispatched, measured from the user's click."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from labvoice.errors import UsageError

Strategy = Literal["sequential", "concurrent", "token", "ahead", "automatic"]
"""How a call gets its agent:

- `sequential`: the caller connects, then dispatches.
- `concurrent`: the dispatch goes out while the caller connects.
- `token`: the caller's access token names the agent, and the server dispatches it as it makes
  the room. A room that exists already ignores that; the caller then dispatches by itself.
- `ahead`: dispatched before the click, when a page is opened or a call is expected. An agent
  that nobody joins leaves after `LABVOICE_IDLE_TIMEOUT_S`.
- `automatic`: a worker without a name serves every room; nobody dispatches.
"""


STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)


class Moment(NamedTuple):
    """When a browser has the agent dispatched, and how a menu says so.

    Attributes:
        when: `after` the microphone is on, `during` the connecting, by the `token` or the server
            alone, or `ahead` of the click; as in `js/src/types.ts`.
        title: For the menu.
    """

    when: Literal["after", "during", "token", "ahead"]
    title: str


WHEN_DISPATCHED: Final[dict[Strategy, Moment]] = {
    "sequential": Moment("after", "After the microphone is on"),
    "concurrent": Moment("during", "While the browser connects"),
    "token": Moment("token", "By the access token"),
    "ahead": Moment("ahead", "Before the click"),
    "automatic": Moment("token", "By a worker that serves every room"),
}
"""What each strategy means in a browser."""


_AHEAD_MARGIN_S: Final = 10.0
"""So long before an agent that was dispatched ahead gives up, another one is asked for."""


def ahead_lifetime_s(idle_timeout_s: float) -> float:
    """Returns how long a page may count on an agent it had dispatched ahead, in seconds.

    Args:
        idle_timeout_s: After so long alone in a room, agents leave (`LABVOICE_IDLE_TIMEOUT_S`).
    """
    return max(1.0, idle_timeout_s - _AHEAD_MARGIN_S)


def check_strategy(name: str) -> Strategy:
    """Returns the strategy of that name.

    Raises:
        UsageError: There is none.
    """
    for strategy in STRATEGIES:
        if strategy == name:
            return strategy
    raise UsageError(f"there is no strategy {name!r}", f"one of {', '.join(STRATEGIES)}")
