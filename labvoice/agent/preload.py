"""Imported by the forkserver: loads the weights, and the client of Letta, that jobs share.

Greeting and apology are synthesised here, once, and in a process of their own: the voice's
phonemizer starts a thread, which a fork would not copy.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import stamina
from livekit import local_inference

from labvoice.agent import session
from labvoice.memory.client import import_client
from labvoice.settings import Settings, load_settings
from labvoice.speech import engines
from labvoice.speech.turn_ends import load_turn_detector

_PHRASES_TIMEOUT_S = 20.0


def _speak(settings: Settings, pipe: Connection) -> None:
    pipe.send(session.synthesise_phrases(settings, engines.tts_engine(settings).load(settings)))


@contextlib.contextmanager
def _speaking(settings: Settings) -> Iterator[Connection]:
    """Runs the synthesis beside the block, which reads the phrases."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_speak, args=(settings, theirs))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _preload(settings: Settings) -> None:
    stamina.instrumentation.set_on_retry_hooks([])  # what is retried logs why
    if settings.letta_base_url:
        import_client()
    engines.import_modules(settings)
    recogniser, voice = engines.both(settings)
    with contextlib.ExitStack() as exits:
        spoken: Connection | None = None
        if voice.preload is not None:
            voice.preload(settings)
            if voice.local and sys.platform == "linux":
                spoken = exits.enter_context(_speaking(settings))
        if recogniser.preload is not None:
            recogniser.preload(settings)
        local_inference.init_vad()
        if settings.turn_detector in ("smart-turn", "either"):
            load_turn_detector(settings.turn_detector, settings)
        # Without them a job process synthesises the phrases, and reports why it cannot.
        with contextlib.suppress(EOFError):
            if spoken is not None and spoken.poll(_PHRASES_TIMEOUT_S):
                session.phrases.update(spoken.recv())


try:
    _preload(load_settings())
except Exception as error:
    # A job process tries again, and reports its failure to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %s", error)
