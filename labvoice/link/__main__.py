"""The process of the relays; a lab controls it over HTTP with a key."""

from __future__ import annotations

import argparse
import os
import secrets
from typing import Any, Final

from aiohttp import web

from labvoice.link.client import RELAY_KEY
from labvoice.link.impairment import LinkProfile
from labvoice.link.relay import LOOPBACK, UdpRelay
from labvoice.link.signalling import Signalling

_CLOSE_TIMEOUT_S: Final = 0.1


class _Open:
    """A relay with the signalling in front of it."""

    def __init__(self, relay: UdpRelay, runner: web.AppRunner) -> None:
        self.relay = relay
        self.runner = runner

    async def close(self) -> None:
        await self.runner.cleanup()
        self.relay.close()


class _Control:
    def __init__(self, key: str) -> None:
        self._key = key
        self._open: dict[int, _Open] = {}
        self._opened = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._check])
        app.router.add_get("/", self._alive)
        app.router.add_post("/relays", self._make)
        app.router.add_put("/relays/{number}", self._impair)
        app.router.add_get("/relays/{number}", self._counts)
        app.router.add_get("/relays/{number}/packets", self._packets)
        app.router.add_delete("/relays/{number}", self._remove)
        app.on_cleanup.append(self.close)
        return app

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            raise web.HTTPUnauthorized
        answer: web.StreamResponse = await handler(request)
        return answer

    def _of(self, request: web.Request) -> _Open:
        try:
            return self._open[int(request.match_info["number"])]
        except (KeyError, ValueError):
            raise web.HTTPNotFound from None

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"open": len(self._open)})

    async def _make(self, request: web.Request) -> web.Response:
        asked = await request.json()
        # The n-th relay of a lab has chances of its own, the same in every run.
        number = self._opened
        self._opened += 1
        profile = LinkProfile.from_json(asked["profile"])
        seed = number if asked["number"] is None else asked["number"]
        relay = UdpRelay(profile, str(seed), keep=asked["keep"])
        runner = web.AppRunner(
            Signalling(asked["server"], relay).app(),
            access_log=None,
            shutdown_timeout=_CLOSE_TIMEOUT_S,
        )
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        self._open[number] = _Open(relay, runner)
        port = runner.addresses[0][1]
        return web.json_response({"number": number, "port": port, "udp_port": relay.port})

    async def _impair(self, request: web.Request) -> web.Response:
        relay = self._of(request).relay
        relay.impair(LinkProfile.from_json(await request.json()))
        return web.json_response({})

    async def _counts(self, request: web.Request) -> web.Response:
        return web.json_response(self._of(request).relay.counts)

    async def _packets(self, request: web.Request) -> web.Response:
        since_s, until_s = (float(request.query[name]) for name in ("since_s", "until_s"))
        packets = self._of(request).relay.packets
        return web.json_response([each for each in packets if since_s <= each.in_s <= until_s])

    async def _remove(self, request: web.Request) -> web.Response:
        made = self._of(request)
        del self._open[int(request.match_info["number"])]
        await made.close()
        return web.json_response({})

    async def close(self, _: web.Application) -> None:
        for made in self._open.values():
            await made.close()


def main() -> None:
    """Serves on loopback until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    web.run_app(
        _Control(os.environ[RELAY_KEY]).app(),
        host=LOOPBACK,
        port=port,
        print=None,
        access_log=None,
        shutdown_timeout=_CLOSE_TIMEOUT_S,
    )


if __name__ == "__main__":
    main()
