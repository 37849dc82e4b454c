"""The embedded language model `small`: llama.cpp's OpenAI-compatible server on a GGUF file.

Run as `python -m labvoice.stack.models.small_model GGUF PORT`.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

import xllamacpp

MODEL: Final = "small"
_CONTEXT_TOKENS: Final = 4096
_SLOTS: Final = 4
"""Number of conversations whose prompts stay cached; they share the context's tokens. llama.cpp
puts a request into the slot with the most similar prompt, so that rooms with one system prompt
evict each other (first token after 420 ms) unless a request names its slot, `"id_slot": 0…3` (130
ms)."""
_REPLY_TOKENS: Final = 80
"""Token limit of a request that sets none, about 20 s of speech. Even when asked for short answers,
a model of this size occasionally talks for over a minute (`labvoice bench turns`, 1 of 20)."""
_THREADS: Final = 1
"""Two threads wait for each other at every layer. With one core busy, a 2-core machine gave
132 ms to the first token and 23 tokens/s with two, 71 ms and 95 tokens/s with one."""


def serve(gguf: str, port: int) -> None:
    """Loads the model and serves it on loopback until a signal ends the process.

    Raises:
        RuntimeError: The model cannot be loaded; llama.cpp prints the cause on standard error.
    """
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = _SLOTS
    params.n_predict = _REPLY_TOKENS
    params.kv_unified = True
    params.cache_ram_mib = 0  # the cache empties idle slots, and each next turn starts cold
    params.cpuparams.n_threads = _THREADS
    params.cpuparams_batch.n_threads = _THREADS
    params.offline = True
    params.ui = False
    server = xllamacpp.Server(params)
    print(f"{MODEL} listens on {server.listening_address}", flush=True)  # noqa: T201
    signal.pause()


if __name__ == "__main__":
    try:
        serve(sys.argv[1], int(sys.argv[2]))
    except RuntimeError as error:
        sys.exit(f"{sys.argv[1]} cannot be loaded: {error}")
