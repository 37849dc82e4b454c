"""Hooks of a scenario: the user's functions that check the state after a call."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from labvoice.errors import LabvoiceError
from labvoice.scenarios.file import ScenarioFile

HOOK_TIMEOUT_S: Final = 30.0
_HINT: Final = "it is `file.py::function`; docs/scenarios.md says what it gets"

Hook = Callable[[Any], Any]


class HookError(LabvoiceError):
    """A hook failed by itself: it raised an error, or did not end in time."""


def load_hook(file: ScenarioFile) -> Hook | None:
    """Imports a scenario's hook; None if it has none.

    Raises:
        ScenarioError: The file or the function is missing, or the file cannot be imported.
    """
    named = file.scenario.expect.final
    if named is None:
        return None
    place, _, function = named.rpartition("::")
    at = ("expect", "final")
    path = file.find(place, *at)
    spec = importlib.util.spec_from_file_location(f"labvoice_hooks_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # as pytest does: a hook imports its neighbours
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # `sys.exit()` and `pytest.skip()` are no Exceptions
        raise file.refusal(
            f"final: {place} cannot be imported: {_place_of(error, path)}", _HINT, *at
        ) from None
    finally:
        sys.path.remove(folder)
    found = getattr(module, function, None)
    if not callable(found):
        raise file.refusal(f"final: {place} has no function {function!r}", _HINT, *at)
    hook: Hook = found
    return hook


async def run_hook(hook: Hook, result: Any, timeout_s: float = HOOK_TIMEOUT_S) -> str:
    """Calls a hook, in a thread if it is not async.

    Returns:
        Why the state is not the expected one; empty if it is.

    Raises:
        HookError: It raised an error that is no AssertionError, or did not end in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            if inspect.iscoroutinefunction(hook):
                answer = await hook(result)
            else:
                answer = await asyncio.to_thread(hook, result)
    except AssertionError as error:
        return str(error) or f"an assertion failed: {_place_of(error)}"
    except TimeoutError:
        raise HookError(f"the hook did not end within {timeout_s:g} s") from None
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # `sys.exit()` and `pytest.fail()` are no Exceptions
        raise HookError(f"the hook raised an error: {_place_of(error)}") from None
    return "" if answer is None or answer else f"it returned {answer!r}"


def _place_of(error: BaseException, path: Path | None = None) -> str:
    """Returns an error with the file and line where it was raised."""
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    if path is not None:
        frames = traceback.StackSummary(
            [each for each in frames if each.filename == str(path)] or frames
        )
    return f"{frames[-1].filename}:{frames[-1].lineno}: {words}" if frames else words
