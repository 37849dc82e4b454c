"""`labvoice up`: a lab and the HTTP service over it, until somebody ends them."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Final, Never

from pydantic import SecretStr

from labvoice.errors import ProcessError, UsageError
from labvoice.lab import Lab, Progress
from labvoice.settings import Llm, Settings, load_settings, read_settings
from labvoice.traces import set_up_traces
from labvoice.web.app import create_app
from labvoice.web.backend import LabBackend
from labvoice.web.logs import set_up_logs
from labvoice.web.security import MIN_REMOTE_KEY_LENGTH, Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings

_KEY_VARIABLES: Final = ("LABVOICE_API_KEY", "LABVOICE_API_KEYS")


async def serve_lab(
    workers: int,
    host: str,
    port: int,
    *,
    allow_remote: bool = False,
    llm: Llm | None = None,
    progress: Progress,
) -> Never:
    """Starts a lab and serves it; ends by being cancelled, and stops all that it started.

    Args:
        workers: How many workers to start.
        host: Address to listen on.
        port: TCP port to listen on.
        allow_remote: Whether `host` may be another than loopback.
        llm: Language model behind the agent; the settings' when not given.
        progress: Told what is being done, and the page's address with its key, once.

    Raises:
        UsageError: `host` is not loopback and `allow_remote` is not given.
        SettingsError: A key is malformed or too short for where the service listens.
        PortInUseError: The port is taken; nothing was started.
        LabvoiceError: A part of the lab cannot be started.
    """
    remote = not _is_loopback(host)
    if remote and not allow_remote:
        raise UsageError(
            f"{host} is not a loopback address: other machines could reach the service",
            f"add `--allow-remote` if that is meant; every key then needs "
            f"{MIN_REMOTE_KEY_LENGTH} characters",
        )
    web = read_settings(WebSettings)
    keyring = Keyring(web, remote=remote)
    for name in _KEY_VARIABLES:
        os.environ.pop(name, None)  # the stack's processes have no use for them
    settings = load_settings(**({"llm": llm} if llm else {}))
    sock = bind_port(host, port)
    shown = f"[{host}]" if ":" in host else host
    webhook_url = f"http://127.0.0.1:{port}/api/webhook"
    traces = set_up_traces("labvoice-service")
    try:
        async with Lab(
            workers=workers, settings=settings, progress=progress, webhook_url=webhook_url
        ) as lab:
            set_up_logs(sys.stderr, [*web.secrets(), keyring.made_key, *_secrets(lab.settings)])
            app = create_app(LabBackend(lab), web, keyring)
            async with HttpServer(app, sock) as server:
                key = f"#key={keyring.made_key.get_secret_value()}" if keyring.made_key else ""
                progress(repr(lab))
                progress(f"page: http://{shown}:{port}/debug{key}")
                if not key:
                    progress("key:  the one in LABVOICE_API_KEY")
                progress(f"API:  http://{shown}:{port}/docs")
                if remote:
                    progress(
                        f"warning: the service listens on {host}: whoever reaches it may try "
                        "keys, and nothing is encrypted; put a proxy with TLS before it"
                    )
                progress("Ctrl-C ends all of it")
                await server.wait()
                raise ProcessError("the HTTP server ended by itself", "its log above tells why")
    finally:
        sock.close()
        if traces is not None:
            traces.shutdown()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _secrets(settings: Settings) -> list[SecretStr]:
    values = (getattr(settings, name) for name in Settings.model_fields)
    return [value for value in values if isinstance(value, SecretStr)]
