"""Runs the gateway: `python -m labvoice.stack.gateway --port PORT`; settings by environment."""

from __future__ import annotations

import argparse
import os

from aiohttp import web

from labvoice.settings import load_settings
from labvoice.stack.gateway.app import Gateway
from labvoice.stack.gateway.server import GATEWAY_KEY
from labvoice.stack.gateway.upstream import load_engines


def main() -> None:
    """Loads the engines and serves on loopback until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    settings = load_settings()
    _, key, secret = settings.livekit
    gateway = Gateway(
        load_engines(settings),
        api_key=key,
        api_secret=secret.get_secret_value(),
        gateway_key=os.environ[GATEWAY_KEY],
    )
    web.run_app(gateway.app(), host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
