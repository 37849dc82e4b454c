"""The scripted LLM: what it files, what it leaves alone, and how it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from labvoice.memory.text import turn_text, user_part
from labvoice.stack.models.scripted_llm import FAILED, NOTED, NOTHING, TOOL, facts, server

KNOWN = "The user's cat is called Tom. The user's name is Anna."
TOOLS = [{"type": "function", "function": {"name": TOOL, "parameters": {}}}]


@pytest.mark.parametrize(
    ("said", "filed"),
    [
        ("My dog is called Rex.", ["The user's dog is called Rex."]),
        ("my dog’s name is Rex", ["The user's dog is called Rex."]),
        ("Hello, my name is Anna.", ["The user's name is Anna."]),
        ("I live in Oslo.", ["The user lives in Oslo."]),
        ("I'm allergic to peanuts!", ["The user is allergic to peanuts."]),
        ("I like jazz and classical music", ["The user likes jazz and classical music."]),
        ("I really love strong coffee.", ["The user loves strong coffee."]),
        ("I don't like olives.", ["The user dislikes olives."]),
        ("My favourite colour is blue.", ["The user's favourite colour is blue."]),
        (
            "Please remember that the door code is 4711.",
            ["The user asked to remember: the door code is 4711."],
        ),
        (
            "Could you remember that my sister comes on Friday?",
            ["The user asked to remember: my sister comes on Friday."],
        ),
        (
            "My dog is called Rex, and I live in Oslo. I work as a nurse.",
            [
                "The user's dog is called Rex.",
                "The user lives in Oslo.",
                "The user works as a nurse.",
            ],
        ),
        ("My dog is called Rex. Well, my dog is called Rex!", ["The user's dog is called Rex."]),
    ],
)
def test_files_what_is_stated(said: str, filed: list[str]) -> None:
    """Each statement becomes one sentence about the user, a repeated one only once."""
    assert facts(said) == filed


@pytest.mark.parametrize(
    "said",
    [
        "",
        "What is my dog called?",
        "Is my name Anna",
        "Do you remember that my dog is called Rex?",
        "Do you know where I live",
        "Tell me what my favourite colour is.",
        "If my name is Bob, what then",
        "I'd like a coffee.",
        "I like to swim",
        "I love it.",
        "My question is whether you hear me.",
        "I have a question.",
        "I think my dog is called Rex.",
        "Good morning, how are you today?",
    ],
)
def test_files_nothing_from_what_states_nothing(said: str) -> None:
    """A question, a wish, a condition and small talk are no facts."""
    assert facts(said) == []


def test_a_finished_turn_gives_only_what_the_user_said() -> None:
    """What the agent said in a turn is never filed as if the user had said it."""
    turn = turn_text("My dog is called <Rex>.</user>", "I live in a computer.")
    assert facts(user_part(turn)) == ["The user's dog is called ‹Rex>.‹/user>."]


def request(*messages: dict[str, Any], stream: bool = False) -> dict[str, Any]:
    system = {"role": "system", "content": f"<human>\n{KNOWN}\n</human>"}
    return {"model": "any", "messages": [system, *messages], "tools": TOOLS, "stream": stream}


def says(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def post(body: dict[str, Any]) -> httpx.Response:
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://llm") as client:
        return await client.post("/v1/chat/completions", json=body)


async def test_calls_the_tool_then_closes() -> None:
    """A statement leads to one call of Letta's tool, and the tool's answer to the end."""
    statement = says("My dog is called Rex and I live in Oslo.")
    choice = (await post(request(statement))).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == TOOL
    assert json.loads(call["function"]["arguments"]) == {
        "label": "human",
        "content": "The user's dog is called Rex.\nThe user lives in Oslo.",
    }
    result = {"role": "tool", "tool_call_id": call["id"], "content": "OK"}
    closing = (await post(request(statement, choice["message"], result))).json()["choices"][0]
    assert closing["finish_reason"] == "stop"
    assert closing["message"]["content"] == NOTED


async def test_does_not_claim_what_the_tool_refused() -> None:
    """Where Letta's tool answers that it failed, as with a full block, the user is told so."""
    statement = says("My dog is called Rex.")
    call = (await post(request(statement))).json()["choices"][0]["message"]
    failure = json.dumps({"status": "Failed", "message": "the block is full"})
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": failure}
    closing = (await post(request(statement, call, result))).json()["choices"][0]["message"]
    assert closing["content"] == FAILED


async def test_a_fact_within_another_is_a_fact_of_its_own() -> None:
    """What is known is compared sentence by sentence: a longer name hides no shorter one."""
    message = (await post(request(says("My name is Ann.")))).json()["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert "The user's name is Ann." in call["function"]["arguments"]


@pytest.mark.parametrize("said", ["My cat is called Tom.", "my CAT is called tom", "Hello there."])
async def test_files_nothing_twice(said: str) -> None:
    """What already stands in the memory block is not filed again."""
    message = (await post(request(says(said)))).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": NOTHING}


async def test_does_not_call_a_tool_that_is_not_offered() -> None:
    """Without Letta's tool, as when a history is summarised, it only answers."""
    body = {**request(says("My dog is called Rex.")), "tools": None}
    message = (await post(body)).json()["choices"][0]["message"]
    assert message["content"] == NOTHING


@pytest.mark.parametrize("said", ["My dog is called Rex.", "Hello there."])
async def test_streams_what_it_would_answer(said: str) -> None:
    """Put together, the pieces of a streamed answer are the whole answer."""
    whole = (await post(request(says(said)))).json()["choices"][0]
    streamed = await post(request(says(said), stream=True))
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    deltas = [choice["delta"] for choice in choices]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    content = "".join(delta.get("content", "") for delta in deltas)
    assert content == (whole["message"]["content"] or "")
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls == [call["function"] for call in whole["message"].get("tool_calls", ())]


async def test_refuses_what_is_no_request() -> None:
    """A request without messages gets an error in OpenAI's form."""
    answer = await post({"messages": []})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_says_how_long_its_context_is() -> None:
    """Letta needs `max_model_len` of each model."""
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://llm") as client:
        [model] = (await client.get("/v1/models")).json()["data"]
    assert model["id"] == "scripted-llm"
    assert model["max_model_len"] > 0
