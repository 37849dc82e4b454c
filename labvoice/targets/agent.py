"""An agent of a target that a lab can call."""

from __future__ import annotations

from dataclasses import dataclass

from labvoice.dispatch import Dispatcher, StrategyName
from labvoice.dispatch.strategies import strategy_of
from labvoice.errors import UsageError
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.targets.bot import Bot
from labvoice.targets.target import Target
from labvoice.targets.worker import TargetWorker


@dataclass(frozen=True)
class TargetAgent:
    """What a lab calls, made by `lab.add_target`; `lab.call(agent_name=…)` takes it.

    Attributes:
        target: What the user named.
        name: Name to dispatch; empty for an agent that serves every room, and for a bot.
        server: The LiveKit server that it serves.
        dispatcher: Dispatcher of that server.
        worker: Its worker, where the lab has started one that is not labvoice's.
        bot: Starts it in a room, where it joins by itself.
    """

    target: Target
    name: str
    server: LiveKitServer
    dispatcher: Dispatcher
    worker: TargetWorker | None = None
    bot: Bot | None = None

    def __str__(self) -> str:
        """How it is dispatched, as text."""
        if self.bot is not None:
            return f"{self.target} joins by itself"
        name = f"as {self.name!r}" if self.name else "without a name: it serves every room"
        return f"{self.target} is registered {name}"

    def strategy(self, asked_for: StrategyName) -> StrategyName:
        """Returns when it is dispatched.

        Args:
            asked_for: What the user asks for.

        Raises:
            UsageError: It cannot be dispatched so, or not with its metadata.
        """
        chosen = strategy_of(asked_for)
        if self.bot is not None:
            if chosen.by_server:
                raise UsageError(
                    f"the server dispatches no bot, and the strategy {asked_for!r} leaves it to it",
                    "one of sequential, concurrent, ahead",
                )
            return asked_for
        if self.name:
            return asked_for
        if not chosen.every_room and asked_for != "sequential":
            raise UsageError(
                f"{self}, and the server alone dispatches it", "leave the strategy out"
            )
        if self.target.metadata:
            raise UsageError(
                f"{self}, and the server dispatches it with no metadata",
                "give it `room_metadata` or `attributes` in labvoice.toml",
            )
        return asked_for if chosen.every_room else "automatic"
