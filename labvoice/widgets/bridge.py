"""Handles requests of a widget's JavaScript on the lab's event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from labvoice.errors import DispatchError, LabvoiceError, UsageError

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
Send = Callable[[dict[str, Any]], None]


def notebook_loop() -> asyncio.AbstractEventLoop:
    """Returns the running event loop.

    Raises:
        UsageError: There is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "a widget needs the notebook's event loop",
            "create it in a notebook cell, where the lab was started",
        ) from None


class Bridge:
    """Handles requests on the event loop of the lab; created in a notebook cell, on that loop.

    JupyterLab from 4.4 on delivers a widget's messages on another thread (ipykernel 7,
    subshells), where no coroutine of the lab may be awaited.

    Args:
        handlers: Handlers by the request's method.
        send: Sends a message to the widget's JavaScript.

    Raises:
        UsageError: There is no running event loop.
    """

    def __init__(self, handlers: Mapping[str, Handler], send: Send) -> None:
        self._handlers = dict(handlers)
        self._send = send
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = notebook_loop()

    def take(self, content: Any, buffers: Sequence[Any] = ()) -> None:
        """Takes a message on any thread; its buffers are an argument too."""
        if isinstance(content, dict) and content.get("kind") == "request":
            if buffers and isinstance(content.get("args"), dict):
                content = {**content, "args": {**content["args"], "buffers": list(buffers)}}
            self._loop.call_soon_threadsafe(self._begin, content)

    def _begin(self, request: dict[str, Any]) -> None:
        task = self._loop.create_task(self._answer(request), name="labvoice-widget-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"kind": "answer", "id": request.get("id")}
        handler = self._handlers.get(str(request.get("method")))
        arguments = request.get("args")
        try:
            if handler is None or not isinstance(arguments, dict):
                raise UsageError(f"the widget asks for {request.get('method')!r}, which is unknown")
            answer["result"] = await handler(arguments)
        except LabvoiceError as error:
            answer["error"] = {
                "message": error.observed,
                "hint": error.hint,
                "outcome": error.outcome if isinstance(error, DispatchError) else "error",
            }
        except ValidationError as error:
            logger.warning("the widget sent an invalid request: %s", error)
            answer["error"] = {
                "message": "this version of labvoice does not accept the widget's request",
                "hint": "reload the page: it may still run the JavaScript of another version",
            }
        except Exception as error:
            # The widget gets the error; the task logs the traceback.
            answer["error"] = {"message": f"{type(error).__name__}: {error}", "hint": ""}
            raise
        finally:
            self._send(answer)
