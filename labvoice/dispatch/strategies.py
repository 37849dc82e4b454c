"""When the agent is dispatched, measured from the user's click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

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


@dataclass(frozen=True)
class Offer:
    """A strategy as a page with a Connect button offers it.

    Attributes:
        name: The strategy.
        title: What the menu shows.
        when: What the browser does; `js/src/types.ts` says what each word means.
    """

    name: Strategy
    title: str
    when: Literal["after", "during", "token", "ahead"]


OFFERED: Final = (
    Offer("concurrent", "While the browser connects", "during"),
    Offer("sequential", "After the microphone is on", "after"),
    Offer("token", "Named in the access token", "token"),
    Offer("ahead", "Before the click", "ahead"),
)
"""What `/debug` offers, the first one chosen."""

STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)


def check_strategy(name: str) -> Strategy:
    """Returns the strategy of that name.

    Raises:
        UsageError: There is none.
    """
    for strategy in STRATEGIES:
        if strategy == name:
            return strategy
    raise UsageError(f"there is no strategy {name!r}", f"one of {', '.join(STRATEGIES)}")
