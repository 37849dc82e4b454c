"""`labvoice up`: the HTTP service over a lab, until it is ended."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Never

from labvoice.errors import ProcessError, UsageError
from labvoice.lab import Lab
from labvoice.protocol.tracing import set_up_traces
from labvoice.settings import read_settings
from labvoice.web.app import create_app
from labvoice.web.lab_backend import LabBackend
from labvoice.web.logs import set_up_logs
from labvoice.web.security import MIN_REMOTE_KEY_LENGTH, Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings

_KEY_VARIABLES: Final = ("LABVOICE_API_KEY", "LABVOICE_API_KEYS")


@dataclass
class PreparedService:
    """A service whose keys and port are checked; made by :func:`prepare`.

    Attributes:
        settings: Settings of the service.
        keyring: Its keys.
        sock: Bound to its port.
        url: Where its page is, without a slash at the end.
        webhook_url: Address of the webhook for a LiveKit server on this machine.
    """

    settings: WebSettings
    keyring: Keyring
    sock: socket.socket
    _host: str
    url: str
    webhook_url: str

    async def serve(self, lab: Lab, progress: Callable[[str], None]) -> Never:
        """Serves a running lab until it is cancelled; accepted requests are still answered.

        Args:
            progress: Called with the page's address and key, once.

        Raises:
            ProcessError: The HTTP server ended by itself.
        """
        made = self.keyring.made_key
        set_up_logs(sys.stderr, [*self.settings.secrets(), made, *lab.settings.secrets()])
        traces = set_up_traces("labvoice-service")
        app = create_app(LabBackend(lab), self.settings, self.keyring)
        try:
            async with HttpServer(app, self.sock) as server:
                progress(repr(lab))
                # In the fragment, which browsers do not send.
                fragment = f"#key={made.get_secret_value()}" if made else ""
                progress(f"page: {self.url}/debug{fragment}")
                if made is None:
                    progress("key:  the one in LABVOICE_API_KEY")
                progress(f"API:  {self.url}/docs")
                if not is_loopback(self._host):
                    progress(
                        f"warning: the service listens on {self._host}: anybody who reaches it may "
                        "try keys, and nothing is encrypted; put a proxy with TLS before it, and "
                        "its address into LABVOICE_PUBLIC_URL"
                    )
                progress("Ctrl-C ends all of it")
                await server.wait()
                raise ProcessError("the HTTP server ended by itself", "see its log above")
        finally:
            if traces is not None:
                traces.shutdown()


def prepare(host: str, port: int, *, allow_remote: bool = False) -> PreparedService:
    """Checks keys and binds the port, before anything heavy is started.

    Args:
        host: Address to listen on.
        port: TCP port to listen on.
        allow_remote: Whether `host` may be another than loopback.

    Raises:
        UsageError: `host` is not loopback and `allow_remote` is not given.
        SettingsError: A key is malformed or too short for the address.
        PortInUseError: The port is taken.
    """
    remote = not is_loopback(host)
    if remote and not allow_remote:
        raise UsageError(
            f"{host} is not a loopback address: other machines could reach the service",
            f"add `--allow-remote` if that is meant; every key then needs "
            f"{MIN_REMOTE_KEY_LENGTH} characters",
        )
    settings = read_settings(WebSettings)
    keyring = Keyring(settings, remote=remote)
    for name in _KEY_VARIABLES:
        os.environ.pop(name, None)  # the stack's processes do not need them
    sock = bind_port(host, port)
    here, shown = _names(host)
    settings = settings.model_copy(
        update={"allowed_hosts": ",".join([settings.allowed_hosts, here, shown])}
    )
    bound_port = sock.getsockname()[1]
    return PreparedService(
        settings,
        keyring,
        sock,
        host,
        settings.public_url or f"http://{shown}:{bound_port}",
        f"http://{here}:{bound_port}/api/webhook",
    )


def _names(host: str) -> tuple[str, str]:
    """Returns the host names of a bound address, for this machine and for others."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host, host
    if address.is_unspecified:
        return ("127.0.0.1" if address.version == 4 else "[::1]"), socket.gethostname().lower()
    name = f"[{address}]" if address.version == 6 else host
    return name, name


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
