"""Imported by the forkserver: loads the weights, and the client of Letta, that jobs share.

The fixed phrases are synthesised here once, in a process of their own, since the voice's phonemizer
starts a thread and a fork copies none.
"""

from __future__ import annotations

import logging
import multiprocessing
from multiprocessing.connection import Connection

from livekit import local_inference

from labvoice.agent import session
from labvoice.memory.client import import_client
from labvoice.settings import Settings, load_settings
from labvoice.speech import engines
from labvoice.speech.turn_ends import load_turn_detector

_PHRASES_TIMEOUT_S = 20.0


def _synthesise(settings: Settings, pipe: Connection) -> None:
    pipe.send(session.synthesise_phrases(settings, engines.tts_engine(settings).load(settings)))


def _preload(settings: Settings) -> None:
    if settings.letta_base_url:
        import_client()
    engines.import_modules(settings)
    recogniser, voice = engines.both(settings)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    speaking = context.Process(target=_synthesise, args=(settings, theirs), daemon=True)
    if voice.preload is not None:
        voice.preload(settings)
        if voice.local:
            speaking.start()
    theirs.close()
    if recogniser.preload is not None:
        recogniser.preload(settings)
    local_inference.init_vad()
    if settings.turn_detector in ("smart-turn", "either"):
        load_turn_detector(settings.turn_detector, settings)
    if speaking.pid is not None:
        if ours.poll(_PHRASES_TIMEOUT_S):
            session.phrases.update(ours.recv())
        speaking.kill()
        speaking.join()
    ours.close()


try:
    _preload(load_settings())
except Exception as error:
    # A job process tries again, and reports its failure to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %r", error)
