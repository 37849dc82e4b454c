"""The service's page `/debug` in a real browser: sign-in, a whole call, phone, keyboard, axe."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect
from pydantic import SecretStr

from labvoice.lab import Lab
from labvoice.speech.utterances import Utterance
from labvoice.web.app import create_app
from labvoice.web.lab_backend import LabBackend
from labvoice.web.security import Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings
from tests.browser.conftest import PATIENCE_S
from tests.stack.talking import LISTENS

KEY = "browser-test-key-0123456789"
MICROPHONE = Path(__file__).with_name("fake_microphone.js")
PHONE: dict[str, Any] = {"width": 360, "height": 740}
DESK: dict[str, Any] = {"width": 1280, "height": 1100}
AUDIBLE_RMS = 0.01


@pytest.fixture(scope="module")
async def address() -> AsyncIterator[str]:
    """A service over a real lab with one worker."""
    settings = WebSettings(api_key=SecretStr(KEY))
    async with Lab(llm="paced", letta=False) as lab:
        app = create_app(LabBackend(lab), settings, Keyring(settings))
        async with HttpServer(app, bind_port("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.port}"


@asynccontextmanager
async def page_of(browser: Browser, size: dict[str, Any]) -> AsyncIterator[Page]:
    """A page that fails the test when its console or its policy has something to complain of."""
    context = await browser.new_context(viewport=size)  # type: ignore[arg-type]
    await context.add_init_script(path=MICROPHONE)
    page = await context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "console",
        lambda message: (
            troubles.append(message.text)
            if message.type == "error" and not re.search("status of (401|404|429)", message.text)
            else None
        ),
    )
    try:
        yield page
    finally:
        await context.close()
    assert troubles == []


async def serious(page: Page) -> list[str]:
    """What axe finds that is serious or worse."""
    results = await Axe().run(page)
    return [
        f"{violation['id']}: {violation['nodes'][0]['html']}"
        for violation in results.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


async def test_the_key_leaves_the_address_bar(chromium: Browser, address: str) -> None:
    """The printed URL signs in, and the key is in no URL, history entry or script's reach after."""
    async with page_of(chromium, DESK) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{address}/debug#key={KEY}")
        await expect(page.locator("#lights")).to_contain_text("livekit: ok")
        assert page.url == f"{address}/debug"
        assert all(KEY not in url for url in asked)
        assert await page.evaluate("document.cookie") == ""
        assert KEY not in await page.content()
        await page.reload()
        await expect(page.locator("#lights")).to_contain_text("workers: ok")


async def test_without_a_key_the_page_asks_for_it(chromium: Browser, address: str) -> None:
    """By keyboard alone: a wrong key is told so, the right one opens the page."""
    async with page_of(chromium, PHONE) as page:
        await page.goto(f"{address}/debug")
        field = page.get_by_label("Key of this service")
        await expect(field).to_be_focused()
        assert await serious(page) == []
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").first).to_contain_text("no valid key")
        await field.fill(KEY)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Connect")).to_be_visible()
        await expect(field).to_be_hidden()


@LISTENS
async def test_a_call_from_the_page(
    chromium: Browser, address: str, recorded: list[Utterance], pictures: Path
) -> None:
    """Connect, hear the greeting, talk, type, diagnose, hang up; the marks reach the service."""
    async with page_of(chromium, DESK) as page:
        await page.goto(f"{address}/debug#key={KEY}")
        until_audible = [PATIENCE_S * 1000, 2 * AUDIBLE_RMS]
        greeting = asyncio.create_task(page.evaluate("loudness", until_audible))
        await page.get_by_role("button", name="Connect").click()
        log, talk = page.locator(".lv-log"), page.locator(".lv-talk")
        await expect(log).to_contain_text("start speaking")
        assert await greeting > AUDIBLE_RMS
        await expect(page.locator(".lv-phase")).to_have_text("the agent listens")
        spoken = base64.b64encode(recorded[0].samples.tobytes()).decode()
        await page.evaluate("speak", spoken)
        said = talk.locator(".lv-you", has_text="best of times")
        await expect(said.first).to_be_visible()
        await expect(talk.locator(".lv-agent")).to_have_count(2)
        await expect(page.locator(".lv-phase")).to_have_text("the agent listens")
        await page.get_by_label("Type to the agent").fill("Tell me more.")
        await page.keyboard.press("Enter")
        await expect(talk.locator(".lv-agent")).to_have_count(3)
        for stage in ("join", "connection", "time_to_greeting", "voice_to_voice"):
            await expect(page.locator(".lv-waterfall")).to_contain_text(stage)
        await page.get_by_role("button", name=re.compile("diagnose|check", re.I)).last.click()
        await expect(page.locator(".lv-checks")).to_contain_text("scratch room")
        assert await serious(page) == []
        await page.screenshot(path=pictures / "page.png", full_page=True)
        reported = re.compile(r"/api/calls/[0-9a-f]{16}$")
        async with page.expect_request(reported) as last:
            await page.get_by_role("button", name="Hang up").click()
        await expect(page.locator(".lv-phase")).to_have_text("Call ended")
        async with page.expect_download() as saving:
            await page.get_by_role("link", name="Save recording").click()
        samples, _ = soundfile.read(await (await saving.value).path(), dtype="float32")
        assert samples.shape[1] == 2
        assert (
            np.abs(samples).max(axis=0).min() > AUDIBLE_RMS
        )  # left the microphone, right the agent
        call = await read_call(page, (await last.value).url)
        assert call["outcome"] == "ok"
        assert call["strategy"] == "concurrent"
        assert call["dispatch_id"].startswith("AD_")
        assert call["stages"].keys() >= {"dispatch", "join", "connection", "time_to_greeting"}
        assert call["marks"]["click"] == 0
        assert [turn["number"] for turn in call["turns"]] == [0, 1]
        assert call["turns"][0]["marks"].keys() >= {"user_speech_end", "reply_heard"}
        text = await page.evaluate("fetch('/metrics').then((answer) => answer.text())")
        for stage in ("connection", "voice_to_voice", "e2e_latency"):
            assert f'labvoice_stage_duration_seconds_count{{stage="{stage}"}}' in text


async def read_call(page: Page, url: str) -> dict[str, Any]:
    """The call as the service keeps it, once the report that is on its way has arrived."""
    call: dict[str, Any] = await page.evaluate(
        """async (url) => {
          for (let tries = 0; tries < 50; tries++) {
            const answer = await fetch(url);
            if (answer.ok) return answer.json();
            await new Promise((done) => setTimeout(done, 100));
          }
          return {};
        }""",
        url,
    )
    return call


async def test_a_call_that_fails_is_reported(chromium: Browser, address: str) -> None:
    """A dispatch that the service refuses is shown, and kept with the outcome `error`."""
    error = {"code": "too_many_requests", "message": "this key asks too often", "hint": "wait"}
    async with page_of(chromium, DESK) as page:

        async def refuse(route: Route) -> None:
            await route.fulfill(status=429, json={"error": error})

        await page.route("**/api/dispatch-agent", refuse)
        await page.goto(f"{address}/debug#key={KEY}")
        async with page.expect_response(
            lambda answer: (
                "/api/calls/" in answer.url and '"error"' in (answer.request.post_data or "")
            )
        ) as reported:
            await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("alert")).to_contain_text("asks too often")
        answer = await reported.value
        assert answer.status == 200
        assert (await read_call(page, answer.url))["outcome"] == "error"


async def test_the_microphone_is_tested_before_a_call(
    chromium: Browser, address: str, recorded: list[Utterance]
) -> None:
    """Without any call the page says that it listens, and then that it hears."""
    async with page_of(chromium, PHONE) as page:
        await page.goto(f"{address}/debug#key={KEY}")
        tested = page.locator(".lv-preflight")
        await tested.get_by_role("button", name="Test microphone").click()
        await expect(tested.get_by_role("status")).to_contain_text("Say something")
        assert await serious(page) == []
        await page.evaluate("speak", base64.b64encode(recorded[0].samples.tobytes()).decode())
        await expect(tested.get_by_role("status")).to_have_text("Your voice is heard.")
        await tested.get_by_role("button", name="Stop the test").click()
        await expect(tested.get_by_role("button", name="Test microphone")).to_be_visible()
        await expect(tested.get_by_role("status")).to_have_text("Your voice is heard.")


async def test_a_denied_microphone_has_a_message(
    refusing_chromium: Browser, address: str, pictures: Path
) -> None:
    """Before the call and in it the page says so and what to do; typing works all the same."""
    async with page_of(refusing_chromium, PHONE) as page:
        await page.goto(f"{address}/debug#key={KEY}")
        tested = page.locator(".lv-preflight")
        await tested.get_by_role("button", name="Test microphone").click()
        await expect(tested.get_by_role("status")).to_contain_text("microphone was denied")
        await expect(tested.get_by_role("status")).to_contain_text("test again")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("alert")).to_contain_text("microphone was denied")
        await expect(page.locator(".lv-log")).to_contain_text("start speaking")
        # What is typed before cuts the greeting off, which then may have no line.
        await expect(page.locator(".lv-talk .lv-agent")).to_have_count(1)
        await page.get_by_label("Type to the agent").fill("What is the weather like?")
        await page.keyboard.press("Enter")
        await expect(page.locator(".lv-talk .lv-agent")).to_have_count(2)
        assert await serious(page) == []
        await page.screenshot(path=pictures / "denied.png", full_page=True)
        await page.get_by_role("button", name="Hang up").click()
        await expect(page.locator(".lv-phase")).to_have_text("Call ended")


async def tab_to(page: Page, name: str) -> None:
    """Presses Tab until what has that name is focused."""
    for _ in range(30):
        focused = await page.evaluate(
            "document.activeElement.ariaLabel || document.activeElement.textContent"
        )
        if focused == name:
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"Tab leads to no {name!r}")


async def test_a_call_on_a_phone_by_keyboard_alone(
    chromium: Browser, address: str, pictures: Path
) -> None:
    """Connect, type, hang up without a pointer; during the call all fits and axe is content."""
    async with page_of(chromium, PHONE) as page:
        await page.goto(f"{address}/debug#key={KEY}")
        await expect(page.get_by_role("button", name="Connect")).to_be_visible()
        await tab_to(page, "Connect")
        await page.keyboard.press("Enter")
        await expect(page.locator(".lv-log")).to_contain_text("start speaking")
        # What is typed before cuts the greeting off, which then may have no line.
        await expect(page.locator(".lv-talk .lv-agent")).to_have_count(1)
        await tab_to(page, "Type to the agent")
        await page.keyboard.type("What is the weather like?")
        await page.keyboard.press("Enter")
        await expect(page.locator(".lv-talk .lv-agent")).to_have_count(2)
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await serious(page) == []
        await page.screenshot(path=pictures / "page-phone-call.png", full_page=True)
        await tab_to(page, "Hang up")
        await page.keyboard.press("Enter")
        await expect(page.locator(".lv-phase")).to_have_text("Call ended")


async def test_the_page_fits_a_phone(chromium: Browser, address: str, pictures: Path) -> None:
    """On a phone nothing is wider than the screen, and axe finds nothing serious."""
    async with page_of(chromium, PHONE) as page:
        await page.goto(f"{address}/debug#key={KEY}")
        await expect(page.get_by_role("button", name="Connect")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await serious(page) == []
        await page.screenshot(path=pictures / "page-phone.png", full_page=True)


async def test_the_api_page_needs_no_network(chromium: Browser, address: str) -> None:
    """Swagger UI shows every route, and asks nobody but the service."""
    async with page_of(chromium, DESK) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{address}/docs")
        await expect(page.get_by_text("/api/dispatch-agent")).to_be_visible()
        assert all(url.startswith((address, "data:")) for url in asked)
