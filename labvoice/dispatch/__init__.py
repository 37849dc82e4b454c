"""Confirmed explicit dispatch, and the diagnosis of a failed one."""

from labvoice.dispatch.dispatcher import Dispatch, Dispatcher
from labvoice.dispatch.strategies import STRATEGIES, Strategy, StrategyName, strategy_of

__all__ = ["STRATEGIES", "Dispatch", "Dispatcher", "Strategy", "StrategyName", "strategy_of"]
