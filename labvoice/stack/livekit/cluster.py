"""Several LiveKit servers on one Redis, behind one address."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from labvoice.errors import LabvoiceError, UsageError
from labvoice.settings import Settings
from labvoice.speech.weights import Progress
from labvoice.stack.livekit.balancer import Balancer
from labvoice.stack.livekit.log import LiveKitLog
from labvoice.stack.livekit.redis import RedisServer
from labvoice.stack.livekit.server import LiveKitServer, NodeConfig, new_key

_ROOM_NODES = "room_node_map"  # LiveKit 1.13.5, pkg/routing/redisrouter.go, NodeRoomKey


class Cluster(LiveKitServer):
    """LiveKit servers that share rooms, workers and dispatches; created by :meth:`start_nodes`.

    Its address is a balancer's: a connection whose server has ended is made again to another one,
    as in front of a deployed cluster.

    Attributes:
        nodes: The servers.
        redis: What they share.
        entries: An address for each node, where the others take over when it has ended.
    """

    def __init__(
        self,
        url: str,
        nodes: Sequence[LiveKitServer],
        redis: RedisServer,
        entries: Sequence[str],
        parts: AsyncExitStack,
    ) -> None:
        first = nodes[0]
        super().__init__(url, first.api_key, first.api_secret, version=first.version)
        self.nodes = nodes
        self.redis = redis
        self.entries = entries
        self.log = LiveKitLog(*(each.process.log_path for each in nodes if each.process))
        self._parts = parts

    @classmethod
    async def start_nodes(
        cls,
        settings: Settings,
        count: int,
        *,
        state_dir: Path,
        progress: Progress = lambda _: None,
        webhook_url: str | None = None,
    ) -> Cluster:
        """Starts a Redis, unless the settings name one, and the servers on it.

        The other arguments are those of :meth:`LiveKitServer.start`.

        Args:
            settings: As there, and `redis_url`.
            count: Number of servers.

        Raises:
            UsageError: The settings name a server already.
            ServerUnreachableError: The Redis of the settings does not answer.
            BuildError: There is no server program and it cannot be built.
            ProcessError: There is no Redis, or a part ended or did not become ready.
        """
        if settings.livekit_url:
            raise UsageError(
                f"LIVEKIT_URL names a server already, and {count} nodes are to be started",
                "unset LIVEKIT_URL, or leave the number of nodes out",
            )
        async with AsyncExitStack() as parts:
            redis = await RedisServer.start(settings, state_dir)
            parts.push_async_callback(redis.stop)
            key, secret = new_key()
            nodes: list[LiveKitServer] = []
            for number in range(1, count + 1):
                config = NodeConfig(f"LiveKit server {number}", key, secret, redis.livekit_config())
                node = await LiveKitServer.start(
                    settings,
                    state_dir=state_dir,
                    progress=progress,
                    webhook_url=webhook_url,
                    node=config,
                )
                parts.push_async_callback(node.stop)
                nodes.append(node)
            balancer = Balancer([urlsplit(each.url).port or 0 for each in nodes])
            parts.push_async_callback(balancer.close)
            url, *entries = [
                f"ws://127.0.0.1:{await balancer.listen(first)}" for first in (None, *range(count))
            ]
            return cls(url, nodes, redis, entries, parts.pop_all())
        raise AssertionError  # nothing above is suppressed

    async def node_of(self, room: str) -> LiveKitServer:
        """Returns the node that has a room.

        Raises:
            LabvoiceError: No node of this cluster has it.
            ServerUnreachableError: Redis does not answer.
        """
        async with self.redis.client() as client:
            node_id = await client.hget(_ROOM_NODES, room)
        for node in self.nodes:
            if node_id and node.log is not None and node.log.node_id() == node_id:
                return node
        raise LabvoiceError(f"no node of this cluster has the room {room!r}", "has it ended?")

    async def stop(self) -> None:
        """Stops the balancer, the servers and Redis, in this order; safe to call twice."""
        await self._parts.aclose()
