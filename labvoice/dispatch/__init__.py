"""Explicit dispatch that is confirmed, and the cause when it fails."""

from labvoice.dispatch.dispatcher import Dispatch, Dispatcher

__all__ = ["Dispatch", "Dispatcher"]
