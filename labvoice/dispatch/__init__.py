"""Explicit dispatch that is confirmed, and the cause when it fails."""

from labvoice.dispatch.dispatcher import Dispatch, Dispatcher
from labvoice.dispatch.strategies import STRATEGIES, Strategy, StrategyName, check_strategy

__all__ = ["STRATEGIES", "Dispatch", "Dispatcher", "Strategy", "StrategyName", "check_strategy"]
