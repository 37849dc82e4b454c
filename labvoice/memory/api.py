"""API of a Letta server: agents, their memory blocks, models."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Any, Final

import httpx
import pandas as pd
from pydantic import SecretStr

from labvoice.errors import CredentialsError, ServerUnreachableError, UsageError
from labvoice.memory.client import PAGE, all_agents, new_client, resolve, translate_errors
from labvoice.proxies import http_client

if TYPE_CHECKING:
    from letta_client import AsyncLetta
    from letta_client.types import AgentState

_TIMEOUT_S: Final = 30.0
_AT_ONCE_S: Final = 1.0
_DELETE_RETRIES: Final = 4  # over some 7 s
# Letta 0.16.8 answers 500 to a name with a dot.
_NAME: Final = re.compile(r"\w[\w '-]{0,62}")
CONTEXT_TOKENS: Final = 8192
"""Context size of an agent; Letta summarises older history."""
_MAX_OUTPUT_TOKENS: Final = 512
_BLOCK_CHARACTERS: Final = 5000
DEFAULT_PERSONA: Final = "I am a friendly voice agent. I answer in one or two short sentences."
SYSTEM_PROMPT: Final = """\
You are a voice agent with a memory that lasts. Your memory blocks are below.
When the user states something about themselves that will still matter in a later call, add it \
to the block "human" with core_memory_append, one short sentence each, and nothing that is \
already there.
A message inside <turn> tags tells you of a turn that has already been spoken: file what the \
user stated in it, then answer with the single word "noted".
Any other message is the user speaking to you: answer in one or two short spoken sentences."""
COLUMNS: Final = ("id", "name", "created_at", "model", "blocks", "human")


class LettaApi:
    """A Letta server's agents and models.

    Attributes:
        model: Handle or name of the model for new agents, if the server offers it; otherwise the
            server's first model is used.
    """

    def __init__(self, base_url: str, api_key: SecretStr | None = None) -> None:
        self.model: str | None = None
        self._base_url, self._api_key = base_url, api_key

    @functools.cached_property
    def _client(self) -> AsyncLetta:
        """Made at first use: its package takes most of a second to import."""
        return new_client(self._base_url, self._api_key)

    async def close(self) -> None:
        """Closes its connections."""
        if "_client" in vars(self):
            await self._client.close()

    async def __aenter__(self) -> LettaApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def check(self) -> None:
        """Checks that a Letta server answers and accepts the key.

        Raises:
            ServerUnreachableError: Nothing answers, or not as Letta does.
            CredentialsError: The server refuses the key.
        """
        try:
            with translate_errors(self._client, "its agents"):
                await self._client.agents.list(limit=1)
        except UsageError as error:
            raise ServerUnreachableError(
                f"the server at {self._base_url} is not a Letta server: {error.observed}",
                "check the address and the port in LETTA_BASE_URL",
            ) from None

    async def agents(self) -> pd.DataFrame:
        """Lists the agents, newest first.

        Returns:
            A row for each agent: `id`, `name`, `created_at` (UTC), `model` (its handle),
            `blocks` (the labels of its memory blocks) and `human` (what it knows of the user).
        """
        rows = [
            {
                "id": agent.id,
                "name": agent.name,
                "created_at": agent.created_at,
                "model": agent.model or agent.llm_config.handle,
                "blocks": [block.label for block in agent.blocks],
                "human": next((b.value for b in agent.blocks if b.label == "human"), ""),
            }
            for agent in await self._all()
        ]
        frame = pd.DataFrame(rows, columns=[*COLUMNS])
        return frame.assign(created_at=pd.to_datetime(frame["created_at"], utc=True))

    async def create(
        self,
        name: str,
        *,
        persona: str = DEFAULT_PERSONA,
        human: str = "",
        model: str | None = None,
    ) -> str:
        """Creates an agent with a persona and known facts about the user.

        Args:
            name: A name that no other agent has: letters, digits, blanks, `-`, `_`.
            human: Text of the block `human`, to which facts are added.
            model: Handle of its model; :attr:`model` when not given.

        Returns:
            Its id.

        Raises:
            UsageError: The name is taken or invalid, or there is no such model.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be an agent's name",
                "use up to 63 letters, digits, blanks, `-` and `_`",
            )
        if any(agent.name == name for agent in await self._all(name=name)):
            raise UsageError(f"there is already an agent named {name!r}", "choose another name")
        with translate_errors(self._client, "a new agent"):
            agent = await self._client.agents.create(
                name=name,
                agent_type="letta_v1_agent",
                model=model or await self._model_handle(),
                context_window_limit=CONTEXT_TOKENS,
                model_settings={
                    "provider_type": "openai",
                    "temperature": 0.0,
                    "max_output_tokens": _MAX_OUTPUT_TOKENS,
                },
                system=SYSTEM_PROMPT,
                memory_blocks=[
                    {"label": "persona", "value": persona, "limit": _BLOCK_CHARACTERS},
                    {"label": "human", "value": human, "limit": _BLOCK_CHARACTERS},
                ],
                include_base_tools=False,
                tools=["core_memory_append"],
            )
        return agent.id

    async def ensure(self, name: str) -> str:
        """Returns the id of the agent of this name; creates it if there is none."""
        if any(agent.name == name for agent in await self._all(name=name)):
            return await self.resolve(name)
        return await self.create(name)

    async def resolve(self, agent: str) -> str:
        """Returns the id of the agent with this id or name.

        Raises:
            UsageError: There is none, or there are several of that name.
        """
        return await resolve(self._client, agent)

    async def resolve_at_once(self, agent: str) -> str:
        """Returns the id of the agent, or the argument if Letta does not answer within 1 s.

        A call must not wait for Letta: the worker resolves a name when Letta answers.

        Raises:
            UsageError: Letta answers that there is none, or several.
        """
        try:
            async with asyncio.timeout(_AT_ONCE_S):
                return await self.resolve(agent)
        except (TimeoutError, ServerUnreachableError, CredentialsError):
            return agent

    async def blocks(self, agent: str) -> dict[str, str]:
        """Returns the text of each memory block of an agent, by label."""
        agent_id = await self.resolve(agent)
        with translate_errors(self._client, f"the memory of {agent}"):
            page = await self._client.agents.blocks.list(agent_id, limit=PAGE)
        return {block.label: block.value for block in page.items if block.label}

    async def set_block(self, agent: str, label: str, value: str) -> None:
        """Replaces the text of a memory block.

        Args:
            agent: Id or name of its agent.
            label: Which block, such as `human`.

        Raises:
            UsageError: The agent has no such block.
        """
        agent_id = await self.resolve(agent)
        with translate_errors(self._client, f"the block {label!r} of {agent}"):
            await self._client.agents.blocks.update(label, agent_id=agent_id, value=value)

    async def delete(self, agent: str) -> None:
        """Deletes an agent and its memory."""
        agent_id = await self.resolve(agent)
        with translate_errors(self._client, f"the agent {agent}"):
            # HTTP 409 while a turn of the agent is starting (0.16.8).
            await self._client.with_options(max_retries=_DELETE_RETRIES).agents.delete(agent_id)

    async def register_model(
        self,
        provider: str,
        base_url: str,
        api_key: SecretStr | None,
        model: str,
        *,
        or_first: bool = False,
    ) -> str:
        """Registers a model behind OpenAI's HTTP API with the server, under a provider's name.

        An existing provider of that name is replaced, and its agents are moved to this model,
        because the model's port differs from run to run.

        Args:
            base_url: Address of the model's server, ending in `/v1`.
            or_first: Use the first listed model if that one is not listed.

        Returns:
            The model's handle, for new agents.

        Raises:
            UsageError: The endpoint does not offer that model.
        """
        key = api_key.get_secret_value() if api_key else "none"
        with translate_errors(self._client, f"the provider {provider}"):
            known = await self._client.get(
                "/v1/providers/",
                cast_to=list[dict[str, Any]],
                options={"params": {"name": provider}},
            )
            for entry in known:
                if entry["name"] == provider:
                    await self._client.delete(f"/v1/providers/{entry['id']}", cast_to=object)
            body = {"name": provider, "api_key": key, "base_url": base_url}
            kind = await self._provider_type(base_url, key)
            await self._client.post(
                "/v1/providers/", cast_to=object, body={**body, "provider_type": kind}
            )
            offered = [m for m in await self._client.models.list() if m.provider_name == provider]
        handles = {m.model: m.handle for m in offered if m.handle}
        handle = handles.get(model) or (next(iter(handles.values()), None) if or_first else None)
        if handle is None:
            raise UsageError(
                f"the endpoint {base_url} does not offer the model {model!r}",
                f"it offers: {', '.join(sorted(handles)) or 'none'}",
            )
        for agent in await self._all():
            config = agent.llm_config
            if config.provider_name == provider and (
                config.handle != handle or config.api_model_endpoint != base_url
            ):
                with translate_errors(self._client, f"the model of {agent.name}"):
                    await self._client.agents.update(agent.id, model=handle)
        return handle

    async def _provider_type(self, base_url: str, key: str) -> str:
        """`vllm` for an endpoint that reports its context length, which Letta requires there."""
        headers = {"Authorization": f"Bearer {key}"}
        async with http_client(base_url, timeout=_TIMEOUT_S) as client:
            try:
                answer = await client.get(f"{base_url}/models", headers=headers)
                answer.raise_for_status()
                models = answer.json()["data"]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise ServerUnreachableError(
                    f"the model endpoint {base_url} does not list its models: {error}",
                    "check OPENAI_BASE_URL and OPENAI_API_KEY",
                ) from None
        return "vllm" if all("max_model_len" in entry for entry in models) else "openai"

    async def _model_handle(self) -> str:
        offered = {m.handle: m.model for m in await self._client.models.list() if m.handle}
        if not offered:
            raise UsageError(
                f"the Letta server at {self._base_url} has no model",
                "register one, or name one with LABVOICE_LLM_MODEL",
            )
        wanted = (handle for handle, name in offered.items() if self.model in (handle, name))
        return next(wanted, next(iter(offered)))

    async def _all(self, **query: Any) -> list[AgentState]:
        return await all_agents(self._client, **query)
