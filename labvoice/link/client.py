"""Client of the relay process: one link for each call."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from labvoice.errors import ProcessError
from labvoice.link.impairment import LinkProfile
from labvoice.link.relay import Packet
from labvoice.proxies import http_session
from labvoice.stack.processes import ManagedProcess, free_port

RELAY_KEY: Final = "LABVOICE_RELAY_KEY"
"""Name of the variable with the key that the relays' process asks for."""
_READY_TIMEOUT_S: Final = 30.0
_ASK_TIMEOUT_S: Final = 5.0


class Link:
    """A relay in front of a server; made by :meth:`Relays.open`.

    Attributes:
        url: What its client is given in place of the server's address, `ws://…`.
        udp_port: The port that the client's media goes to.
        profile: The current impairment.
        keeps_packets: Whether :meth:`packets` has any.
    """

    def __init__(
        self, relays: Relays, made: dict[str, int], profile: LinkProfile, keeps_packets: bool
    ) -> None:
        self._relays = relays
        self._path = f"/relays/{made['number']}"
        self.url = f"ws://127.0.0.1:{made['port']}"
        self.udp_port = made["udp_port"]
        self.profile = profile
        self.keeps_packets = keeps_packets

    async def set(self, profile: LinkProfile | str) -> None:
        """Changes the impairment from now on.

        Args:
            profile: A link, or its text as :meth:`LinkProfile.parse` reads it.

        Raises:
            UsageError: The text cannot be read.
            ProcessError: The relay does not answer.
        """
        wanted = LinkProfile.parse(profile) if isinstance(profile, str) else profile
        await self._relays.ask("PUT", self._path, wanted.to_json())
        self.profile = wanted

    async def clear(self) -> None:
        """Removes the impairment from now on."""
        await self.set(LinkProfile())

    async def counts(self) -> dict[str, int]:
        """Returns the number of packets by direction and fate: `up in`, `down lost`, …."""
        told: dict[str, int] = await self._relays.ask("GET", self._path)
        ways = [f"{way} {fate}" for way in ("up", "down") for fate in ("in", "out", "lost")]
        return dict.fromkeys(ways, 0) | told

    async def packets(self, since_s: float, until_s: float) -> list[Packet]:
        """Returns the RTP packets that came between two instants, in monotonic seconds."""
        path = f"{self._path}/packets?since_s={since_s}&until_s={until_s}"
        return [Packet(*each) for each in await self._relays.ask("GET", path)]

    async def aclose(self) -> None:
        """Closes it; its client loses its connection."""
        await self._relays.ask("DELETE", self._path)


class Relays:
    """The relays of callers, in a process of their own that starts with the first of them."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process: ManagedProcess | None = None
        self._starting = asyncio.Lock()
        self._address = ""
        self._key = secrets.token_urlsafe(24)

    async def _start(self) -> None:
        port = free_port()
        self._address = f"http://127.0.0.1:{port}"
        self._process = await ManagedProcess.start(
            "link relay",
            [sys.executable, "-P", "-m", "labvoice.link", f"--port={port}"],
            log_path=self._state_dir / "link.log",
            env={**os.environ, RELAY_KEY: self._key},
            stop_step_s=3.0,
            secrets={self._key},
        )

        async def answers() -> bool:
            try:
                await self.ask("GET", "/")
            except ProcessError:
                return False
            return True

        try:
            await self._process.until_ready(answers, timeout_s=_READY_TIMEOUT_S)
        except BaseException:
            await self._process.stop()
            raise

    async def open(
        self,
        server: str,
        profile: LinkProfile | None = None,
        *,
        keep_packets: bool = False,
        number: int | None = None,
    ) -> Link:
        """Opens a relay in front of a server.

        Args:
            server: The server's address, `http://…`.
            profile: The impairment; none when not given.
            keep_packets: Whether its RTP packets are kept.
            number: Sets the random numbers of links with one seed apart; how many were opened
                before when not given.

        Raises:
            ProcessError: The process ended, was not ready in time, or does not answer.
        """
        async with self._starting:
            if self._process is None or not self._process.running:
                await self._start()
        profile = profile or LinkProfile()
        asked = {
            "server": server,
            "profile": profile.to_json(),
            "keep": keep_packets,
            "number": number,
        }
        return Link(self, await self.ask("POST", "/relays", asked), profile, keep_packets)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Asks the process for something; used by :class:`Link`.

        Raises:
            ProcessError: It does not answer, or refuses.
        """
        timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            async with (
                http_session(self._address, timeout=timeout, headers=headers) as http,
                http.request(method, self._address + path, json=body) as answer,
            ):
                answer.raise_for_status()
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProcessError(
                f"the link's relay does not answer: {error or type(error).__name__}",
                "its log is `link.log`; start the lab again",
                self._process.log_tail() if self._process is not None else "",
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stops the process, and all links with it; safe to call twice."""
        if self._process is not None:
            await self._process.stop()
