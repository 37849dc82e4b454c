"""Confirmed explicit dispatch, and the diagnosis of a failed one."""

from labvoice.dispatch.dispatcher import Dispatch, Dispatcher
from labvoice.dispatch.strategies import STRATEGIES, Strategy, StrategyName, check_strategy

__all__ = ["STRATEGIES", "Dispatch", "Dispatcher", "Strategy", "StrategyName", "check_strategy"]
