"""Speech engines by name, for recognition and synthesis.

The settings `stt` and `tts` (LABVOICE_STT, LABVOICE_TTS) name them: `embedded`, `deepgram`,
`plugin:NAME` for a package livekit-plugins-NAME, or a name that another package registers; see
docs/plugins.md. The default is Deepgram if its key is set, otherwise the embedded models.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar
from urllib.parse import parse_qsl

from labvoice.errors import LabvoiceError, SettingsError
from labvoice.settings import Settings
from labvoice.speech import deepgram
from labvoice.speech.weights import WeightName

if TYPE_CHECKING:  # they take seconds to import, needed only to load an engine
    from livekit.agents import stt, tts, vad

_Model = TypeVar("_Model")
_Kind = Literal["stt", "tts"]
_PLUGIN: Final = "plugin:"
_PLUGINS: Final = "livekit.plugins"
_SILERO: Final = f"{_PLUGINS}.silero"
MOONSHINES: Final[Mapping[str, WeightName]] = {"base": "moonshine-base", "tiny": "moonshine-tiny"}
"""Weights of the embedded recogniser, by size."""


@dataclass(frozen=True)
class Engine(Generic[_Model]):
    """A speech engine, for recognition or synthesis.

    Only `load` is required.

    Attributes:
        label: Name in a run's frame and in reports.
        load: Returns LiveKit's `stt.STT` or `tts.TTS`. Called once in each job process, before a
            call arrives, off the event loop; it may take long, and raises a
            :class:`~labvoice.errors.LabvoiceError` on failure.
        check_settings: Raises a :class:`~labvoice.errors.SettingsError` if a required setting is
            missing. Called before anything is started; it must not load models or send requests.
        look: Returns a short status for `labvoice doctor`, or raises a
            :class:`~labvoice.errors.LabvoiceError`; None: the doctor loads the engine.
        preload: Loads what forked processes can share; called on the main thread of the forkserver.
            It must leave no thread running.
        imports: Modules to import on the main thread, as LiveKit's plugins require.
        weights: Its weights in :mod:`labvoice.speech.weights`; downloaded before workers start.
        local: Whether it runs on this machine at no charge: then the greeting is synthesised before
            a call arrives, and LiveKit's on-device VAD is used.
    """

    label: str
    load: Callable[[Settings], _Model]
    check_settings: Callable[[Settings], object] = lambda _: None
    look: Callable[[Settings], Awaitable[str]] | None = None
    preload: Callable[[Settings], None] | None = None
    imports: tuple[str, ...] = ()
    weights: tuple[WeightName, ...] = ()
    local: bool = False


def stt_engine(settings: Settings) -> Engine[stt.STT[Any]]:
    """Returns the engine for speech recognition.

    Raises:
        SettingsError: There is none of that name, or the settings lack what it needs.
    """
    return _engine("stt", settings.stt, settings)


def tts_engine(settings: Settings) -> Engine[tts.TTS[Any]]:
    """Returns the engine for speech synthesis.

    Raises:
        SettingsError: There is none of that name, or the settings lack what it needs.
    """
    return _engine("tts", settings.tts, settings)


def both(settings: Settings) -> tuple[Engine[Any], Engine[Any]]:
    """Returns the engines for recognition and synthesis.

    Raises:
        SettingsError: There is none of a name, or the settings lack what it needs.
    """
    return stt_engine(settings), tts_engine(settings)


def weights_of(settings: Settings) -> set[WeightName]:
    """Returns the weights that a worker with these settings loads.

    Raises:
        SettingsError: There is no engine of a name, or the settings lack what it needs.
    """
    needed = {name for engine in both(settings) for name in engine.weights}
    if settings.turn_detector in ("smart-turn", "either"):
        needed.add("smart-turn")
    return needed


def load_vad() -> vad.VAD:
    """Loads the voice detector beside a recogniser that does not run on this machine."""
    detector: vad.VAD = _imported(_SILERO).VAD.load()
    return detector


def import_modules(settings: Settings) -> None:
    """Imports the engines' modules on the main thread.

    Raises:
        SettingsError: It cannot be imported.
    """
    for engine in both(settings):
        for name in engine.imports:
            _imported(name)
    if not stt_engine(settings).local:
        _imported(_SILERO)


async def look(settings: Settings) -> str:
    """Returns the status of both engines, for the doctor.

    Raises:
        LabvoiceError: One cannot be used.
    """
    import_modules(settings)
    seen: dict[object, str] = {}
    words = []
    for does, engine in zip(("recogniser", "voice"), both(settings), strict=True):
        key = engine.look or does
        if key not in seen and engine.look is not None:
            seen[key] = await engine.look(settings)
        elif key not in seen:
            await asyncio.to_thread(engine.load, settings)
            seen[key] = "it loads"
        words.append(f"{does} {engine.label}: {seen[key]}")
    return "; ".join(words)


def _embedded(function: str, **arguments: str) -> Callable[[Settings], Any]:
    """Returns a function of :mod:`labvoice.speech.embedded`, which its first call imports."""

    def call(settings: Settings) -> Any:
        embedded = importlib.import_module("labvoice.speech.embedded")
        return getattr(embedded, function)(settings, **arguments)

    return call


def _embedded_stt(size: Literal["base", "tiny"]) -> Engine[stt.STT[Any]]:
    return Engine(
        f"moonshine-{size}",
        _embedded("load_moonshine", size=size),
        preload=_embedded("preload_moonshine", size=size),
        weights=(MOONSHINES[size],),
        local=True,
    )


def _embedded_tts() -> Engine[tts.TTS[Any]]:
    return Engine(
        "piper-joe",
        _embedded("load_piper"),
        preload=_embedded("preload_piper"),
        weights=("piper-joe",),
        local=True,
    )


def _deepgram(load: Callable[[Settings], _Model]) -> Engine[_Model]:
    return Engine(
        "deepgram",
        load,
        check_settings=deepgram.key_of,
        look=deepgram.look,
        imports=(f"{_PLUGINS}.deepgram",),
    )


_OURS: Final[Mapping[_Kind, Mapping[str, Callable[[], Engine[Any]]]]] = {
    "stt": {
        "embedded": functools.partial(_embedded_stt, "base"),
        "base": functools.partial(_embedded_stt, "base"),
        "tiny": functools.partial(_embedded_stt, "tiny"),
        "deepgram": functools.partial(_deepgram, deepgram.load_stt),
    },
    "tts": {
        "embedded": _embedded_tts,
        "deepgram": functools.partial(_deepgram, deepgram.load_tts),
    },
}


def _engine(kind: _Kind, name: str | None, settings: Settings) -> Engine[Any]:
    if name is None:
        name = "deepgram" if settings.deepgram_api_key else "embedded"
    if name in _OURS[kind]:
        engine = _OURS[kind][name]()
    elif name.startswith(_PLUGIN):
        engine = _plugin(kind, name)
    else:
        engine = _registered(kind, name)
    engine.check_settings(settings)
    return engine


def _registered(kind: _Kind, name: str) -> Engine[Any]:
    """Returns the engine that a package registers by an entry point: an `Engine` or its `load`."""
    group = f"labvoice.{kind}"
    found = next(iter(metadata.entry_points(group=group, name=name)), None)
    if found is None:
        others = metadata.entry_points(group=group).names
        names = ", ".join([*_OURS[kind], *sorted(others), f"{_PLUGIN}NAME"])
        raise SettingsError(
            f"there is no engine {name!r} for LABVOICE_{kind.upper()}; there are {names}",
            "correct the name, or install the package that registers it",
        )
    try:
        engine = found.load()
    except Exception as error:
        raise SettingsError(
            f"the engine {name!r} cannot be imported from {found.value}: {error}",
            "reinstall its package, or remove the setting",
        ) from error
    return engine if isinstance(engine, Engine) else Engine(name, engine)


def _plugin(kind: _Kind, name: str) -> Engine[Any]:
    """Returns the engine of a package livekit-plugins-NAME: `plugin:NAME?option=value&…`."""
    plugin, _, query = name.removeprefix(_PLUGIN).partition("?")
    module = f"{_PLUGINS}.{plugin}"
    if not plugin.isidentifier() or importlib.util.find_spec(module) is None:
        raise SettingsError(
            f"LABVOICE_{kind.upper()} names {name!r}, and no LiveKit plugin {plugin!r} is "
            "installed",
            f"`pip install livekit-plugins-{plugin or 'NAME'}`",
        )
    options = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}

    def load(_: Settings) -> Any:
        make = getattr(_imported(module), kind.upper(), None)
        if make is None:
            does = "recognise" if kind == "stt" else "speak"
            raise SettingsError(
                f"the LiveKit plugin {plugin!r} does not {does}: it has no {kind.upper()}",
                f"correct LABVOICE_{kind.upper()}",
            )
        try:
            return make(**options)
        except Exception as error:  # each plugin has its own error for a missing key
            raise SettingsError(
                f"the LiveKit plugin {plugin!r} cannot be used: {error}",
                "set its key in the environment (only labvoice reads `.env`), or "
                f"correct the options in LABVOICE_{kind.upper()}",
            ) from None

    return Engine(name, load, imports=(module,))


def _value(text: str) -> Any:
    """Parses an option's value: JSON if valid, otherwise text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except LabvoiceError:
        raise
    except Exception as error:
        raise SettingsError(
            f"{module} cannot be imported: {error}",
            "reinstall its package, or choose another engine",
        ) from error
