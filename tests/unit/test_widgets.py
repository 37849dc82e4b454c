"""The kernel's side of the widgets: requests, the Connect button and the monitor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labvoice.dispatch import STRATEGIES
from labvoice.errors import LabvoiceError, RunFileError, UsageError
from labvoice.health import checks
from labvoice.lab import Lab
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.widgets.bridge import Bridge
from labvoice.widgets.connect import ConnectButton
from labvoice.widgets.monitor import Monitor, Watcher
from tests.unit.test_browser_call import SENT


@pytest.fixture
async def lab(dead_server: LiveKitServer, tmp_path: Path) -> AsyncIterator[Lab]:
    """A running lab whose LiveKit server does not answer: nothing listens there."""
    lab = Lab(workers=0, letta=False, model=False, supervise=False, data_dir=tmp_path)
    async with lab:
        yield lab


class Page:
    """The other end of a bridge: what it was sent, and a way to wait for it."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self._more = asyncio.Event()

    def send(self, content: dict[str, Any], *_: object) -> None:
        """Takes an answer."""
        self.answers.append(content)
        self._more.set()

    async def answer(self) -> dict[str, Any]:
        """Returns the next answer."""
        async with asyncio.timeout(60):
            while not self.answers:
                self._more.clear()
                await self._more.wait()
        return self.answers.pop(0)


def request(method: str, args: Any, number: int = 1) -> dict[str, Any]:
    """A request as `js/src/notebook.ts` sends it."""
    return {"kind": "request", "id": number, "method": method, "args": args}


async def ask(button: ConnectButton, method: str, args: Any, *buffers: bytes) -> dict[str, Any]:
    """Asks a button as the page does; returns its answer."""
    page = Page()
    data = {"method": "custom", "content": request(method, args)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(button.comm, "send", lambda data, **_: page.send(data["content"]))
        button.comm.handle_msg({"content": {"data": data}, "buffers": list(buffers)})
        return await page.answer()


# -- the bridge


async def test_a_request_from_another_thread_is_answered_on_the_labs_loop() -> None:
    """JupyterLab delivers a widget's messages on a thread where nothing may be awaited."""
    page = Page()
    ours = threading.get_ident()

    async def where(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"here": threading.get_ident() == ours, **arguments}

    bridge = Bridge({"where": where}, page.send)
    await asyncio.to_thread(bridge.take, request("where", {"a": 1}, 7))
    assert await page.answer() == {"kind": "answer", "id": 7, "result": {"here": True, "a": 1}}


@pytest.mark.parametrize("wrong", [request("nonsense", {}), request("known", ["no", "object"])])
async def test_a_request_that_nobody_understands_is_refused_with_a_message(wrong: Any) -> None:
    """An unknown method, or arguments that are none, end in an answer and not in silence."""
    page = Page()

    async def known(_: dict[str, Any]) -> None:
        """Answers nothing."""

    Bridge({"known": known}, page.send).take(wrong)
    assert "which is unknown" in (await page.answer())["error"]["message"]


async def test_a_message_that_is_no_request_is_left_alone() -> None:
    """Other messages of the widget's, and what is no message at all, are not answered."""
    page = Page()
    bridge = Bridge({}, page.send)
    for other in (None, "text", {"kind": "answer"}, [request("a", {})]):
        bridge.take(other)
    bridge.take(request("last", {}, 2))
    assert (await page.answer())["id"] == 2
    assert page.answers == []


def test_a_bridge_without_an_event_loop_is_refused() -> None:
    """Outside a notebook nobody would answer."""
    with pytest.raises(UsageError, match="event loop"):
        Bridge({}, lambda _: None)


# -- the Connect button


async def test_the_button_offers_every_strategy_once(lab: Lab) -> None:
    """They are those of the dispatcher; the agent that comes ahead is renewed before it leaves."""
    button = lab.connect_button()
    assert [one["name"] for one in button.strategies] == [
        name for name in STRATEGIES if name != "automatic"
    ]
    assert {one["lifetime_s"] for one in button.strategies} == {lab.settings.idle_timeout_s - 10}


@pytest.mark.parametrize("wrong", [{"room": 3}, {"strategy": "nonsense"}, {"unknown": True}])
async def test_a_token_is_refused_to_a_request_that_cannot_be_right(
    lab: Lab, wrong: dict[str, Any]
) -> None:
    """A page of another version is told to reload."""
    answer = await ask(lab.connect_button(), "token", wrong)
    assert "reload the page" in answer["error"]["hint"]


async def test_a_button_of_a_stopped_lab_says_so(lab: Lab) -> None:
    """Token and dispatch are refused, a new button too, and the diagnosis names the server."""
    button = lab.connect_button()
    await lab.stop()
    for method in ("token", "dispatch"):
        answer = await ask(button, method, {"room": "a-room"})
        assert answer["error"]["message"] == "the lab is not running"
    diagnosis = (await ask(button, "diagnose", {}))["result"]
    assert [one["ok"] for one in diagnosis if one["name"] == "livekit"] == [False]
    with pytest.raises(LabvoiceError, match="not running"):
        lab.connect_button()
    with pytest.raises(LabvoiceError, match="no call was made"):
        _ = button.call


async def test_the_diagnosis_starts_nothing(lab: Lab) -> None:
    """It looks at the lab as it stands, as the HTTP service does, and says what is missing."""
    answer = await ask(lab.connect_button(), "diagnose", {})
    seen = {check.name: check for check in await checks.diagnose(lab)}
    assert list(seen) == ["livekit", "workers", "model"]
    assert {one["name"]: one["hint"] for one in answer["result"]} == {
        name: check.hint for name, check in seen.items()
    }
    assert "no LiveKit server answers" in seen["livekit"].observed


async def test_a_call_that_cannot_be_saved_is_said_and_kept(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page hears of it, and the kernel still has the figures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    button = lab.connect_button()
    assert "error" not in await ask(button, "record", {**SENT, "ended": False})
    answer = await ask(button, "record", SENT)
    assert "cannot be written" in answer["error"]["message"]
    assert button.call.ended
    assert "connection" in set(button.call.frame["stage"])
    assert list(lab.recent_calls) == [button.call]
    with pytest.raises(RunFileError):
        button.call.save()


async def test_what_the_page_records_is_kept_beside_the_run(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces come as buffers of messages; what comes after the end of the call is dropped."""
    monkeypatch.chdir(tmp_path)
    button = lab.connect_button()
    assert button.recording == "ogg"
    await ask(button, "record", {**SENT, "ended": False})
    piece = {"call_id": SENT["call_id"], "first": 0, "rate_hz": 24000, "start_s": 100.5}
    sound = np.full(48000, 900, np.int16).tobytes()
    assert "error" not in await ask(button, "sound", piece, sound)
    assert "does not accept" in (await ask(button, "sound", piece))["error"]["message"]
    await ask(button, "record", SENT)
    await ask(button, "sound", {**piece, "first": 24000}, sound)
    (row,) = button.call.run.recordings.to_dict("records")
    assert row["start_s"] == pytest.approx(0.5)
    assert button.call.listen().length_s == pytest.approx(1.0, abs=0.05)


# -- the monitor


async def seen(monitor: Monitor, key: str) -> Any:
    """Waits until the monitor shows something under a key."""
    async with asyncio.timeout(60):
        while key not in monitor.snapshot:
            await asyncio.sleep(0.01)
    return monitor.snapshot[key]


async def test_the_first_look_that_fails_is_shown(lab: Lab) -> None:
    """A monitor that has seen nothing yet says what is the matter."""
    monitor = lab.monitor()
    assert "no LiveKit server answers" in await seen(monitor, "trouble")
    assert "no LiveKit server answers" in repr(monitor)
    monitor.close()


async def test_an_error_that_nobody_expected_is_shown_and_does_not_end_the_watching(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look may succeed again."""
    looks = iter([RuntimeError("Session is closed")])

    async def look(self: Watcher, *, with_parts: bool = True) -> dict[str, Any]:
        for error in looks:
            raise error
        return {"running": True, "again": True}

    monkeypatch.setattr(Watcher, "look", look)
    monitor = lab.monitor()
    shown: list[str] = []
    monitor.observe(lambda change: shown.append(change["new"].get("trouble", "")), "snapshot")
    assert await seen(monitor, "again")
    assert shown == ["RuntimeError: Session is closed", ""]
    monitor.close()


async def test_monitors_of_a_lab_share_one_watcher_that_ends_with_the_last(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook full of monitors asks no more than one."""
    looks: list[Watcher] = []

    async def look(self: Watcher, *, with_parts: bool = True) -> dict[str, Any]:
        looks.append(self)
        return {"looks": len(looks)}

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while len(looks) < count:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(Watcher, "look", look)
    first, second = lab.monitor(), lab.monitor()
    await until(1)
    first.close()
    await until(2)  # it goes on for the second
    assert second.snapshot == {"looks": 2}
    second.close()
    third = lab.monitor()
    await until(3)
    assert looks[0] is looks[1]
    assert looks[2] is not looks[1]
    third.close()


async def test_a_monitor_ends_with_its_lab(lab: Lab) -> None:
    """It says that the lab runs no more, and a new one is refused."""
    monitor = lab.monitor()
    await seen(monitor, "trouble")
    await lab.stop()
    async with asyncio.timeout(60):
        while monitor.snapshot != {"running": False}:
            await asyncio.sleep(0.01)
    with pytest.raises(LabvoiceError, match="not running"):
        lab.monitor()
    monitor.close()


async def test_what_has_not_changed_is_not_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many looks at the same thing make one message."""
    monitor = lab.monitor()
    sent: list[object] = []
    looks = 0
    look = Watcher.look

    async def counted(self: Watcher, *, with_parts: bool = True) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return await look(self, with_parts=with_parts)

    monkeypatch.setattr(Watcher, "look", counted)
    monitor.observe(sent.append, "snapshot")
    async with asyncio.timeout(60):
        while looks < 3:
            await asyncio.sleep(0.01)
    assert len(sent) == 1
    monitor.close()


async def test_a_call_that_its_page_has_left_is_ended_and_saved(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that begins, as after a reload, ends the record of a caller who is gone."""
    monkeypatch.chdir(tmp_path)
    button = lab.connect_button()
    marks = [*SENT["marks"], {"name": "room_connected", "at_s": 100.2}]
    await ask(button, "record", {**SENT, "marks": marks, "ended": False})
    assert not button.call.ended
    assert "error" not in await ask(button, "hello", {})
    assert button.call.ended
    assert "reloaded or closed" in repr(button.call)
    assert button.call.run.complete
    await ask(button, "record", {**SENT, "turns": [], "ended": False})  # comes too late
    assert len(button.call.turns) == 1
