"""A LiveKit server: the external one of the settings, or a child process on loopback only."""

from __future__ import annotations

import functools
import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from livekit import api
from pydantic import SecretStr

from labvoice.errors import CredentialsError, ServerUnreachableError
from labvoice.proxies import http_client
from labvoice.settings import Settings
from labvoice.speech.weights import Progress
from labvoice.stack.livekit.binary import find_or_build
from labvoice.stack.livekit.log import LiveKitLog
from labvoice.stack.processes import ManagedProcess, Server, free_port

_LOOPBACK: Final = "127.0.0.1"
_READY_TIMEOUT_S: Final = 30.0
# The server gets no other environment variables: it would read REDIS_HOST, NODE_IP, UDP_PORT
# and every LIVEKIT_… variable over its configuration (cmd/server/main.go, baseFlags).
_ENV_KEPT: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "TZ")


@dataclass(frozen=True)
class NodeConfig:
    """What the nodes of a cluster share.

    Attributes:
        name: Name of the one that is started.
        api_key: API key of all.
        redis: Section `redis` of their configuration.
    """

    name: str
    api_key: str
    api_secret: SecretStr
    redis: Mapping[str, object]


class LiveKitServer(Server):
    """A LiveKit server that answers and accepts the key; created by :meth:`start`.

    Attributes:
        url: WebSocket address, such as `ws://127.0.0.1:7880`.
        http_url: The same address for HTTP.
        agent_url: What agents are given as its address.
        api_key: API key of the tokens.
        api_secret: API secret of the tokens.
        process: The child process; None if the server is external.
        version: The server's version; None if it is external.
        metrics_url: Prometheus metrics of the lab's own server; None if it is external.
        log: Log of the lab's own server; None if it is external.
        nodes: The servers behind this address; empty for a single one.
    """

    nodes: Sequence[LiveKitServer] = ()

    def __init__(
        self,
        url: str,
        api_key: str,
        api_secret: SecretStr,
        *,
        version: str | None = None,
        metrics_url: str | None = None,
    ) -> None:
        self.http_url = http_address(url)
        self.url = self.agent_url = "ws" + self.http_url.removeprefix("http")
        self.api_key = api_key
        self.api_secret = api_secret
        self.version = version
        self.metrics_url = metrics_url
        self.log: LiveKitLog | None = None

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        state_dir: Path,
        progress: Progress = lambda _: None,
        webhook_url: str | None = None,
        node: NodeConfig | None = None,
    ) -> LiveKitServer:
        """Uses the server of the settings, or starts one.

        The lab's own server listens on loopback only, with a key generated for this run. Its
        program is on PATH or in the cache, and is built otherwise.

        Args:
            settings: `livekit_url`, key and secret, and the cache's folder.
            progress: Called every few seconds with the state of a build.
            webhook_url: Where the lab's own server sends its signed webhooks.
            node: For a node of a cluster; None: a server by itself.

        Raises:
            ServerUnreachableError: The server of the settings does not answer.
            CredentialsError: It refuses the key or the secret.
            BuildError: There is no server program and it cannot be built.
            ProcessError: The server ended or did not become ready.
        """
        if settings.livekit_url:
            theirs = cls(*settings.livekit)
            await cls.check(theirs.url, theirs.api_key, theirs.api_secret)
            return theirs

        program = await find_or_build(settings, progress)
        http_port, metrics_port = free_port(), free_port()
        api_key, api_secret = (node.api_key, node.api_secret) if node else new_key()
        config = _config(
            http_port=http_port,
            metrics_port=metrics_port,
            udp_port=_free_udp_port(),
            keys={api_key: api_secret.get_secret_value()},
            debug=settings.log_level == "DEBUG",
        )
        if webhook_url:
            config["webhook"] = {"api_key": api_key, "urls": [webhook_url]}
        if node is not None:
            config["redis"] = node.redis
        name = node.name if node is not None else "LiveKit server"
        server = cls(
            f"ws://{_LOOPBACK}:{http_port}",
            api_key,
            api_secret,
            version=program.version,
            metrics_url=f"http://{_LOOPBACK}:{metrics_port}/metrics",
        )

        async def launch() -> ManagedProcess:
            process = await ManagedProcess.start(
                name,
                [program.path],
                log_path=state_dir / f"{name.replace(' ', '-').lower()}.log",
                # By environment: arguments show in `ps`, and a file would outlive the run.
                env={
                    **{name: os.environ[name] for name in _ENV_KEPT if name in os.environ},
                    "LIVEKIT_CONFIG": json.dumps(config),  # JSON is YAML
                },
                stop_step_s=2.0,
            )
            probe = functools.partial(cls.check, server.url, api_key, api_secret)
            await process.until_ready(probe, timeout_s=_READY_TIMEOUT_S)
            return process

        server._launch = launch
        server.process = await launch()
        server.log = LiveKitLog(server.process.log_path)
        return server

    @staticmethod
    async def check(url: str, api_key: str, api_secret: SecretStr, timeout_s: float = 5.0) -> None:
        """Checks that a LiveKit server answers and accepts a key.

        Args:
            url: Its address, `ws://…`, `wss://…`, `http://…` or `https://…`.
            timeout_s: How long to wait for the answer, in seconds.

        Raises:
            ServerUnreachableError: Nothing answers in time, or not as LiveKit does.
            CredentialsError: The server refuses the key or the secret.
        """
        grants = api.VideoGrants(room_list=True)
        token = api.AccessToken(api_key, api_secret.get_secret_value()).with_grants(grants)
        try:
            async with http_client(http_address(url), timeout=timeout_s) as client:
                answer = await client.post(
                    f"{http_address(url)}/twirp/livekit.RoomService/ListRooms",
                    json={},
                    headers={"Authorization": f"Bearer {token.to_jwt()}"},
                )
        except httpx.TimeoutException:
            raise ServerUnreachableError(
                f"the LiveKit server at {url} did not answer within {timeout_s:g} s",
                "check the address and the network",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachableError(
                f"no LiveKit server answers at {url}: {error}",
                "start it, correct LIVEKIT_URL, or unset LIVEKIT_URL to let labvoice start one",
            ) from None
        if answer.status_code in {401, 403}:
            # The server's message may contain the token, so it is not shown.
            if "invalid API key" in answer.text:
                observed = f"the LiveKit server at {url} does not know the key {api_key}"
            elif "signature is invalid" in answer.text:
                observed = f"the LiveKit server at {url} refuses the secret of key {api_key}"
            else:
                observed = f"the LiveKit server at {url} refuses a token of key {api_key}"
            raise CredentialsError(
                observed, "check LIVEKIT_API_KEY and LIVEKIT_API_SECRET, and this machine's clock"
            )
        if answer.is_server_error:
            raise ServerUnreachableError(
                f"the server at {url} answered HTTP {answer.status_code} when asked for its rooms",
                "it, or what stands before it, cannot serve now: its log says why",
            )
        if answer.status_code != 200 or '"rooms"' not in answer.text:
            raise ServerUnreachableError(
                f"the server at {url} is not a LiveKit server: HTTP {answer.status_code} "
                "when asked for its rooms",
                "check the address and the port in LIVEKIT_URL",
            )

    def in_settings(self, settings: Settings) -> Settings:
        """Returns the settings with its address, key and secret."""
        return settings.model_copy(
            update={
                "livekit_url": self.url,
                "livekit_api_key": self.api_key,
                "livekit_api_secret": self.api_secret,
                "redis_url": None,  # its password is for the servers alone
            }
        )


def new_key() -> tuple[str, SecretStr]:
    """Returns a new API key and its secret."""
    return "lab" + secrets.token_hex(6), SecretStr(secrets.token_urlsafe(32))


def _config(
    *, http_port: int, metrics_port: int, udp_port: int, keys: dict[str, str], debug: bool
) -> dict[str, object]:
    """Returns a configuration that opens sockets on loopback and nowhere else."""
    return {
        "port": http_port,
        "bind_addresses": [_LOOPBACK],
        "keys": keys,
        "rtc": {
            "node_ip": _LOOPBACK,
            "use_external_ip": False,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
            "ips": {"includes": [f"{_LOOPBACK}/32"]},
            "udp_port": udp_port,
            "tcp_port": 0,
            # A dead port: an empty list would mean public STUN servers.
            "stun_servers": [f"{_LOOPBACK}:3478"],
        },
        "prometheus": {"port": metrics_port},
        # The server logs that no worker took a job at level info only.
        "logging": {"level": "debug" if debug else "info"},
    }


def http_address(url: str) -> str:
    """Returns a `ws` or `http` address as `http`, without a trailing slash."""
    return ("http" + url[2:] if url.startswith("ws") else url).rstrip("/")


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
