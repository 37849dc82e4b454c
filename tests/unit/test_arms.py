"""Arms: how they are chosen by name, and in which order they take turns."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit.agents import JobProcess

from labvoice.bench import stock_agent
from labvoice.bench.arms import (
    CONNECT_ARMS,
    choose,
    choose_endpointing,
    endpointing_arms,
    interleave,
    target_arms,
)
from labvoice.bench.facts import arm_columns
from labvoice.bench.stock_naive_agent import make_stock_naive_server
from labvoice.errors import SettingsError, UsageError
from labvoice.lab import Lab
from labvoice.settings import load_settings
from labvoice.targets.target import Target


def test_arms_are_chosen_by_name_in_the_order_given() -> None:
    """A list and a text with commas mean the same; the first is the base."""
    assert [arm.name for arm in choose("token, stock", CONNECT_ARMS)] == ["token", "stock"]
    assert choose(["token", "stock"], CONNECT_ARMS) == choose("token,stock", CONNECT_ARMS)


@pytest.mark.parametrize("names", ["tokn", "token,token"])
def test_a_wrong_choice_of_arms_is_refused(names: str) -> None:
    """An unknown name and a name given twice are usage errors."""
    with pytest.raises(UsageError):
        choose(names, CONNECT_ARMS)


def test_an_endpointing_arm_is_a_worker_with_that_silence() -> None:
    """Each has a name and a worker of its own; the longest silence is never below the shortest."""
    short, long = endpointing_arms("0.2, 1.5")
    assert (short.name, long.name) == ("0.2", "1.5")
    assert short.agent_name != long.agent_name
    assert short.settings["min_endpointing_delay_s"] == 0.2
    assert long.settings["max_endpointing_delay_s"] == 1.5


@pytest.mark.parametrize("delays", ["", "fast", "-1", "6", "nan", "0.2,0.2"])
def test_a_wrong_silence_is_refused(delays: str) -> None:
    """What is no number of seconds from 0 to 5, or given twice, is a usage error."""
    with pytest.raises(UsageError):
        endpointing_arms(delays)


def test_silences_and_agents_are_arms_of_one_endpointing_run() -> None:
    """Agents alone bring no silences of labvoice's own with them."""
    (mine,) = target_arms({"mine": "name:my-agent"})
    assert [arm.name for arm in choose_endpointing(["0.2", mine])] == ["0.2", "mine"]
    assert [arm.name for arm in choose_endpointing([mine])] == ["mine"]
    assert [arm.name for arm in choose_endpointing({"mine": "name:my-agent"})] == ["mine"]


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({"stt": "tiny", "min_endpointing_delay_s": 0.2}, {"min_endpointing_delay_s": 0.2}),
        ({"turn_detector": "vad"}, {"turn_detector": "vad"}),
        ({"openai_base_url": "http://127.0.0.1:9/v1", "llm": "openai"}, {"llm": "openai"}),
    ],
)
def test_settings_of_the_own_agent_are_arms(
    settings: dict[str, Any], columns: dict[str, Any]
) -> None:
    """Any field, engine, model endpoint or turn detector; the frame's columns tell them apart."""
    (arm,) = target_arms({"other": Target.own(**settings)})
    assert arm.target is not None
    assert dict(arm.target.settings) == settings
    assert columns.items() <= arm_columns(load_settings(), arm).items()


def test_a_turn_detector_that_nobody_knows_is_refused() -> None:
    """The setting names those there are."""
    with pytest.raises(SettingsError, match="v1-mini"):
        Target.own(turn_detector="psychic")


def test_every_arm_has_its_turn_in_every_round() -> None:
    """Each round has each arm once, and no arm always follows the same other one."""
    arms = choose("stock,token,ahead", CONNECT_ARMS)
    order = [(number, arm.name) for number, arm in interleave(arms, 30)]
    assert Counter(order) == Counter((n, arm.name) for n in range(30) for arm in arms)
    firsts = Counter(name for _, name in order[::3])
    assert set(firsts) == {"stock", "token", "ahead"}


async def test_an_empty_list_of_utterances_is_refused_before_anything_starts() -> None:
    """Nothing to say is a wrong use, told without a lab that runs."""
    with pytest.raises(UsageError, match="list of utterances is empty"):
        await Lab(letta=False).bench.turns(1, utterances=[])


def test_stock_loads_its_models_in_the_set_up_of_a_process_and_the_naive_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LiveKit's own starter does as `stock`, which is the baseline."""
    monkeypatch.setattr(stock_agent, "load_models", lambda: {"vad": "loaded"})
    settings = load_settings()
    found = []
    for make in (stock_agent.make_stock_server, make_stock_naive_server):
        process = SimpleNamespace(userdata={})
        if (set_up := make(settings, port=0).setup_fnc) is not None:
            set_up(cast("JobProcess", process))
        found.append(process.userdata)
    assert found == [{"vad": "loaded"}, {}]
