"""The client of a Letta server, and translation of its errors."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
from pydantic import SecretStr

from labvoice.errors import CredentialsError, ServerUnreachableError, UsageError
from labvoice.proxies import http_client

if TYPE_CHECKING:  # it takes most of a second to import, for which nobody without Letta waits
    import letta_client
    from letta_client import AsyncLetta
    from letta_client.types import AgentState

_MODULES: Final = (
    "httpcore",
    "letta_client.resources.agents.agents",
    "letta_client.resources.runs.runs",
)
_AGENT_ID: Final = re.compile(r"agent-[0-9a-f-]{36}")
PAGE: Final = 100
# 408 and 429 mean: retry later; 409 means that the agent is busy with another request.
_PASSING: Final = {408, 409, 429}
_TIMEOUT_S: Final = 30.0
MAX_STEPS: Final = 4
"""How many rounds of its model Letta may take for one message."""


class NotReachedError(ServerUnreachableError):
    """No connection was made, so the request had no effect."""


class ServerFailedError(ServerUnreachableError):
    """The server answered with an internal error: the request has ended with an unknown effect."""


class AgentMissingError(UsageError):
    """The server has no such agent, block or provider."""


class ModelRefusedError(ServerUnreachableError):
    """The model behind the server refuses the server's key; ours is valid."""


@functools.cache
def _authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


def import_client() -> None:
    """Imports what a client needs, also what it would import at first use.

    A call's event loop would be blocked for up to a second: a process does it when it starts.
    """
    for name in _MODULES:
        importlib.import_module(name)


def new_client(base_url: str, api_key: SecretStr | None) -> AsyncLetta:
    """Returns a client without retries: the queue checks a message's outcome first."""
    import_client()
    from letta_client import AsyncLetta

    return AsyncLetta(
        base_url=base_url,
        api_key=api_key.get_secret_value() if api_key else None,
        timeout=_TIMEOUT_S,
        max_retries=0,
        http_client=http_client(
            base_url,
            timeout=_TIMEOUT_S,
            # Loading CA certificates takes as long; plain HTTP does not need them.
            verify=_authorities() if base_url.startswith("https") else False,
        ),
    )


@contextmanager
def translate_errors(client: AsyncLetta, what: str) -> Iterator[None]:
    """Translates the errors of a request into labvoice's errors.

    Args:
        what: What was requested, for the message.

    Raises:
        CredentialsError: The key was refused.
        ModelRefusedError: The model behind the server refused the server's key.
        AgentMissingError: There is no such thing.
        UsageError: The server refused the request.
        NotReachedError: No connection was made.
        ServerFailedError: The server answered with HTTP 500.
        ServerUnreachableError: No answer, or not one from Letta.
    """
    import letta_client

    address = str(client.base_url).rstrip("/")
    server = f"the Letta server at {address}"
    try:
        yield
    except (letta_client.AuthenticationError, letta_client.PermissionDeniedError) as error:
        if _of_the_model(error):
            raise ModelRefusedError(
                f"the model behind {server} refuses the server's key: {_detail(error)}",
                "correct the key that the Letta server has for its model",
            ) from None
        raise CredentialsError(f"{server} refuses the key", "check LETTA_API_KEY") from None
    except letta_client.APITimeoutError:
        raise ServerUnreachableError(
            f"{server} did not answer in time when asked for {what}", "it may be overloaded"
        ) from None
    except letta_client.APIConnectionError as error:
        before = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
        raise (NotReachedError if before else ServerUnreachableError)(
            f"nothing answers at {address}, where a Letta server was expected "
            f"({error.__cause__ or error})",
            "start it, correct LETTA_BASE_URL, or unset it for an embedded one",
        ) from None
    except httpx.HTTPError as error:  # the client passes a stream's own errors on unchanged
        raise ServerUnreachableError(
            f"{server} broke off when asked for {what}: {error or type(error).__name__}",
            "its log says why",
        ) from None
    except letta_client.NotFoundError:
        raise AgentMissingError(f"{server} answered HTTP 404 when asked for {what}") from None
    except letta_client.InternalServerError as error:
        # An answer of a proxy in between, not in Letta's JSON, does not tell how the request ended.
        told = error.body.keys() if isinstance(error.body, dict) else ()
        own = error.status_code == 500 and ("detail" in told or "error" in told)
        raise (ServerFailedError if own else ServerUnreachableError)(
            f"{server} answered HTTP {error.status_code} when asked for {what}", "its log says why"
        ) from None
    except letta_client.APIStatusError as error:
        raise (ServerUnreachableError if error.status_code in _PASSING else UsageError)(
            f"{server} answered HTTP {error.status_code} when asked for {what}", _detail(error)
        ) from None
    except (letta_client.APIResponseValidationError, ValueError, AttributeError) as error:
        raise ServerUnreachableError(
            f"the server at {address} does not answer as Letta does ({error})",
            "check the address and the port in LETTA_BASE_URL",
        ) from None


def _of_the_model(error: letta_client.APIStatusError) -> bool:
    """Whether Letta passes on its model's answer (0.16.8, app.py, `llm_auth_…_handler`)."""
    inner = error.body.get("error") if isinstance(error.body, dict) else None
    return isinstance(inner, dict) and str(inner.get("type", "")).startswith("llm_")


def _detail(error: letta_client.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    return str((inner if isinstance(inner, dict) else body).get("detail", ""))


async def all_agents(client: AsyncLetta, **query: Any) -> list[AgentState]:
    """Returns all agents with their blocks, the newest first; `query` narrows the list."""
    with translate_errors(client, "its agents"):
        return [
            agent
            async for agent in client.agents.list(
                limit=PAGE, order="desc", include=["agent.blocks"], **query
            )
        ]


def is_agent_id(agent: str) -> bool:
    """Whether this is an agent's id, not a name."""
    return _AGENT_ID.fullmatch(agent) is not None


async def resolve(client: AsyncLetta, agent: str) -> str:
    """Returns the id of the agent with this id or name.

    Raises:
        UsageError: There is none, or there are several of that name.
        ServerUnreachableError: The server does not answer.
    """
    if is_agent_id(agent):
        with translate_errors(client, f"the agent {agent}"):
            return (await client.agents.retrieve(agent)).id
    everyone = await all_agents(client)
    found = [candidate.id for candidate in everyone if candidate.name == agent]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} Letta agents are named {agent!r}",
            f"use the id: {', '.join(f'`{i}`' for i in found)}",
        )
    names = sorted({candidate.name for candidate in everyone})
    close = difflib.get_close_matches(agent, names, n=3)
    raise UsageError(
        f"there is no Letta agent named {agent!r}",
        f"did you mean {' or '.join(f'`{name}`' for name in close)}?"
        if close
        else f"there are: {', '.join(f'`{n}`' for n in names[:10]) or 'none; create one'}",
    )
