"""labvoice: launch, dispatch, prove and measure LiveKit voice agents from a notebook.

The public names are importable from here and are loaded at first use: `import labvoice` itself
loads neither LiveKit nor pandas.
"""

from __future__ import annotations

import os as _os
from typing import TYPE_CHECKING, Any

# onnxruntime (1.29 and later) contacts a telemetry host unless this is set before it loads. Every
# labvoice process sets it here; child processes inherit it.
_os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from labvoice import errors as errors
    from labvoice.bench.arms import Arm as Arm
    from labvoice.bench.menu import Bench as Bench
    from labvoice.caller.call import Call as Call
    from labvoice.lab import Lab as Lab
    from labvoice.runs.compare import compare as compare
    from labvoice.runs.run import Run as Run
    from labvoice.scenarios.model import Expect as Expect
    from labvoice.scenarios.model import Say as Say
    from labvoice.scenarios.model import Scenario as Scenario
    from labvoice.scenarios.suite import run_scenarios as run_scenarios
    from labvoice.settings import Settings as Settings
    from labvoice.speech.utterances import Utterance as Utterance
    from labvoice.targets.target import Target as Target
    from labvoice.widgets.connect import ConnectButton as ConnectButton
    from labvoice.widgets.monitor import Monitor as Monitor

    __version__: str

_HOMES = {
    "Arm": "labvoice.bench.arms",
    "Bench": "labvoice.bench.menu",
    "Call": "labvoice.caller.call",
    "ConnectButton": "labvoice.widgets.connect",
    "Expect": "labvoice.scenarios.model",
    "Lab": "labvoice.lab",
    "Monitor": "labvoice.widgets.monitor",
    "Run": "labvoice.runs.run",
    "Say": "labvoice.scenarios.model",
    "Scenario": "labvoice.scenarios.model",
    "Settings": "labvoice.settings",
    "Target": "labvoice.targets.target",
    "Utterance": "labvoice.speech.utterances",
    "compare": "labvoice.runs.compare",
    "run_scenarios": "labvoice.scenarios.suite",
}

__all__ = [*_HOMES, "__version__", "errors"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "errors":
        value = importlib.import_module("labvoice.errors")
    elif name == "__version__":
        from importlib import metadata

        value = metadata.version("labvoice")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
