"""Notebook 03 in JupyterLab itself: a browser presses Connect, talks, listens and hangs up."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.async_api import Browser, Locator, Page, expect

from labvoice.concurrency import poll
from labvoice.runs.remeasure import remeasure
from labvoice.runs.run import Run
from labvoice.speech.utterances import Utterance
from tests.browser.conftest import PATIENCE_S, Jupyter
from tests.stack.talking import LISTENS

NOTEBOOK = "03-your-own-voice.ipynb"
MICROPHONE = Path(__file__).with_name("fake_microphone.js")
AUDIBLE_RMS = 0.01
SILENT_RMS = 0.001
NOTEBOOK_7_NOISE = (
    "Cannot read properties of undefined (reading 'schema')",
    "Command 'filebrowser:open-path' not registered.",
)
"""Notebook 7's own errors: it uses settings and commands of plugins that it does not have."""


@asynccontextmanager
async def notebook(
    browser: Browser,
    jupyter: Jupyter,
    pictures: Path,
    name: str = NOTEBOOK,
    until: str = "the median",
    *,
    lab: bool = True,
) -> AsyncIterator[Page]:
    """Opens a notebook, in JupyterLab or Notebook 7, and runs all its cells, with a new kernel.

    Console errors fail the test.
    """
    context = await browser.new_context(viewport={"width": 1280, "height": 1500})
    await context.add_init_script(path=MICROPHONE)
    page = await context.new_page()
    errors: list[str] = []

    def note(text: str) -> None:
        if not any(noise in text for noise in NOTEBOOK_7_NOISE):
            errors.append(text)

    page.on("pageerror", lambda error: note(str(error)))
    page.on(
        "console",
        lambda message: (
            note(f"{message.text} {message.location['url']}") if message.type == "error" else None
        ),
    )
    try:
        await page.goto(jupyter.page(name, lab=lab))
        await page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        if lab:
            await page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        else:  # Notebook 7 has no status bar
            await page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
        await jupyter.until_kernel_idles()
        await page.get_by_role("menuitem", name="Run", exact=True).click()
        await page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        await page.locator(".labvoice").first.wait_for(timeout=120_000)
        # A benchmark further down would take cores from the call.
        await page.get_by_text(until).last.wait_for(timeout=120_000)
        yield page
    except BaseException:
        await page.screenshot(path=pictures / f"failed-{secrets.token_hex(4)}.png")
        raise
    finally:
        await context.close()
        await jupyter.end_kernels()
    assert errors == []


async def speak(page: Page, utterance: Utterance) -> None:
    """Says it into the fake microphone; returns when the last sample has been played."""
    await page.evaluate("speak", base64.b64encode(utterance.samples.tobytes()).decode())


async def loudness(page: Page, for_ms: int = PATIENCE_S * 1000) -> float:
    """RMS of the loudest 50 ms that the page plays of the agent; ends early when it is audible."""
    return float(await page.evaluate("loudness", [for_ms, 2 * AUDIBLE_RMS]))


@asynccontextmanager
async def filmed(widget: Locator, path: Path) -> AsyncIterator[None]:
    """Keeps a picture of the widget each second, as an animated GIF that tells a call's story."""
    pictures: list[bytes] = []

    async def film() -> None:
        while True:
            pictures.append(await widget.screenshot())
            await asyncio.sleep(1)

    filming = asyncio.create_task(film())
    try:
        yield
    finally:
        filming.cancel()
        await asyncio.gather(filming, return_exceptions=True)
    frames = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = (frames[0].width, max(frame.height for frame in frames))
    film_strip = []
    for frame in frames:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(frame)
        film_strip.append(canvas.resize((size[0] * 3 // 4, size[1] * 3 // 4)).quantize(64))
    first, *others = film_strip
    first.save(path, save_all=True, append_images=others, duration=700, loop=0)


@LISTENS
async def test_a_call_with_the_browsers_microphone(
    chromium: Browser, jupyter: Jupyter, recorded: list[Utterance], pictures: Path
) -> None:
    """Connect, greeting, a spoken turn, interruption, hang-up and a second call all work."""
    before = set((jupyter.folder / "runs").glob("browser-*.jsonl"))
    async with notebook(chromium, jupyter, pictures) as page:
        widget = page.locator(".labvoice").first
        await widget.scroll_into_view_if_needed()
        await widget.screenshot(path=pictures / "idle.png")
        log, talk = widget.locator(".lv-log"), widget.locator(".lv-talk")
        phase = widget.locator(".lv-phase")
        async with filmed(widget, pictures / "call.gif"):
            # Listened for from the start: a greeting of 2 s may be over once these lines are seen.
            greeting = asyncio.create_task(loudness(page))
            await widget.get_by_role("button", name="Connect").click()
            for line in (
                "connected to the room",
                "microphone on",
                "requesting dispatch",
                "agent connected",
                "start speaking",
            ):
                await expect(log).to_contain_text(line)
            assert await greeting > AUDIBLE_RMS
            await expect(talk.locator(".lv-agent")).to_contain_text("Hello")
            await expect(phase).to_have_text("the agent listens")
            assert await loudness(page, 1000) < SILENT_RMS

            reply = asyncio.create_task(loudness(page))
            await speak(page, recorded[0])
            said = talk.locator(".lv-you", has_text="best of times")
            await expect(said.first).to_be_visible()
            assert await reply > AUDIBLE_RMS
            await expect(talk.locator(".lv-agent")).to_have_count(2)
            await widget.screenshot(path=pictures / "talking.png")
            await page.screenshot(path=pictures / "jupyterlab-call.png")

            await expect(phase).to_have_text("the agent listens")
            await widget.get_by_label("Type to the agent").fill("Tell me more.")
            async with asyncio.timeout(PATIENCE_S):
                interrupting = page.evaluate("pressWhen", ["the agent speaks", "Interrupt"])
                await asyncio.gather(interrupting, page.keyboard.press("Enter"))
            await expect(log).to_contain_text("agent interrupted")
            await expect(phase).to_have_text("the agent listens")

            await widget.get_by_role("button", name="Mute").click()
            await expect(widget.get_by_role("button", name="Unmute")).to_be_visible()
            await widget.get_by_role("button", name="Unmute").click()
            waterfall = widget.locator(".lv-waterfall")
            for stage in (
                "job_request",
                "join",
                "connection",
                "time_to_greeting",
                "voice_to_voice",
                "typed to voice",
            ):
                await expect(waterfall).to_contain_text(stage)
            await widget.get_by_role("button", name="Hang up").click()
            await expect(phase).to_have_text("Call ended")
            # What was found in the call stays.
            await expect(widget.locator(".lv-lights .lv-ok", has_text="worked")).to_have_count(5)
            await widget.screenshot(path=pictures / "ended.png")

        # What the page recorded is beside its run.
        async def with_recording() -> list[Run]:
            new = set((jupyter.folder / "runs").glob("browser-*.jsonl")) - before
            return [run for run in map(Run.load, new) if len(run.recordings) == 1]

        (run,) = await poll(with_recording, 30, 0.5)  # written after the page has said its end
        assert not remeasure(run).marks.empty

        # What the browser has measured is in the kernel, in the columns of every run.
        await page.locator(".jp-Cell", has_text="print(button.call)").click()
        await page.keyboard.press("Shift+Enter")
        measured = page.locator(".jp-Cell", has_text="print(button.call)")
        await expect(measured).to_contain_text("BrowserCall: ended, outcome ok, 2 turns")
        await expect(measured).to_contain_text("voice to voice")
        await expect(measured).to_contain_text("2. interrupted")
        await expect(measured).to_contain_text("time_to_greeting")
        await page.keyboard.press("Shift+Enter")

        await widget.scroll_into_view_if_needed()
        # The agent comes as soon as it is chosen so, and not at the click.
        await widget.get_by_label("Dispatch").select_option("ahead")
        await widget.get_by_role("button", name="Connect again").click()
        await expect(log).to_contain_text("start speaking")
        await expect(log).not_to_contain_text("requesting dispatch")
        await expect(widget.locator(".lv-waterfall")).to_contain_text("job_request")
        await widget.get_by_role("button", name="Hang up").click()
        await page.screenshot(path=pictures / "notebook.png", full_page=True)


def write(path: Path, sources: Sequence[str]) -> None:
    """Writes a notebook of these cells."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


CELLS = (
    "from labvoice.lab import Lab\nlab = await Lab(llm='paced', letta=False).start()",
    "button = lab.connect_button()\nbutton",
    "button",
    "lab.monitor()",
    "if button.calls:\n    lab.faults.kill_worker(lab.pool.workers[0])\n    print('killed')",
    "print([call.path is not None for call in button.calls])",
    "print('the ' + 'end')",
)


HOLD_SOUND_BACK = """() => {
  const play = HTMLMediaElement.prototype.play;
  Object.defineProperty(HTMLMediaElement.prototype, "autoplay", { set() {} });
  window.held = true;
  HTMLMediaElement.prototype.play = function () {
    if (window.held) return Promise.reject(new DOMException("no gesture", "NotAllowedError"));
    return play.call(this);
  };
}"""
"""What a browser with a strict autoplay policy does, until `held` is false."""


async def test_sound_that_is_held_back_in_notebook_7(
    chromium: Browser, jupyter: Jupyter, pictures: Path
) -> None:
    """In Jupyter Notebook 7 the widget works too; "Start audio" lets the agent be heard."""
    write(jupyter.folder / "seven.ipynb", [*CELLS[:2], CELLS[-1]])
    async with notebook(chromium, jupyter, pictures, "seven.ipynb", "the end", lab=False) as page:
        widget = page.locator(".labvoice").first
        await page.evaluate(HOLD_SOUND_BACK)
        await widget.get_by_role("button", name="Connect").click()
        start = widget.get_by_role("button", name="Start audio")
        await expect(start).to_be_visible()
        await expect(widget.get_by_role("alert")).to_contain_text("Start audio")
        assert await loudness(page, 1000) < SILENT_RMS
        await widget.screenshot(path=pictures / "held-back.png")
        await page.evaluate("() => { window.held = false; }")
        await start.click()
        await expect(start).to_be_hidden()
        await widget.get_by_label("Type to the agent").fill("Can I hear you now?")
        await page.keyboard.press("Enter")
        assert await loudness(page) > AUDIBLE_RMS
        await page.screenshot(path=pictures / "notebook-7.png")
        await widget.get_by_role("button", name="Hang up").click()


async def test_two_views_a_reload_and_a_killed_worker(
    chromium: Browser, jupyter: Jupyter, pictures: Path
) -> None:
    """Views share a call, the monitor sees it, a reloaded page calls again, a loss is said."""
    write(jupyter.folder / "views.ipynb", CELLS)
    async with notebook(chromium, jupyter, pictures, "views.ipynb", "the end") as page:
        views, monitor = page.locator(".labvoice"), page.locator(".labvoice-monitor")
        await expect(views).to_have_count(2)
        await views.nth(0).get_by_role("button", name="Connect").click()
        await expect(views.nth(1).locator(".lv-log")).to_contain_text("start speaking")
        await expect(monitor).to_contain_text("browser-")
        await expect(monitor).to_contain_text("100 %")
        await monitor.screenshot(path=pictures / "monitor.png")
        await views.nth(1).get_by_role("button", name="Hang up").click()
        await expect(views.nth(0).locator(".lv-phase")).to_have_text("Call ended")

        # The page is reloaded in the middle of a call: its record ends and is saved.
        await views.nth(0).get_by_role("button", name="Connect again").click()
        await expect(views.nth(0).locator(".lv-log")).to_contain_text("start speaking")
        await page.locator("[data-jp-item-name=save]").click()
        await expect(page.locator(".jp-mod-dirty")).to_have_count(0)
        await page.reload()
        await expect(views).to_have_count(2)
        kept = page.locator(".jp-Cell", has_text="call.path is not None")
        async with asyncio.timeout(PATIENCE_S):
            while "[True, True]" not in await kept.inner_text():
                await kept.locator(".jp-InputArea").click()
                await page.keyboard.press("Control+Enter")
                await asyncio.sleep(1)
        await views.nth(0).get_by_label("Dispatch").select_option("concurrent")
        await views.nth(0).get_by_role("button", name="Connect").click()
        await expect(views.nth(0).locator(".lv-log")).to_contain_text("start speaking")
        await page.locator(".jp-Cell", has_text="kill_worker").locator(".jp-InputArea").click()
        await page.keyboard.press("Shift+Enter")
        # LiveKit itself needs some 21 s to notice; a supervisor is faster.
        log = views.nth(0).locator(".lv-log")
        await expect(log).to_contain_text("agent left")
        apology = asyncio.create_task(loudness(page))  # it may be over once the next line is seen
        await views.nth(0).screenshot(path=pictures / "killed.png")
        await expect(log).to_contain_text("another agent took over")
        assert await apology > AUDIBLE_RMS


MEMORY_CELLS = (
    "from labvoice.lab import Lab\n"
    "lab = await Lab(llm='paced', fresh=True).start()\n"
    "await lab.letta_server.until_up()",
    "button = lab.connect_button()\nbutton",
    "for call in button.calls:\n"
    "    human = (await lab.letta.blocks(call.record.letta_agent_id))['human'].strip()\n"
    "    print(call.record.notes.get('memory'), 'and Letta knows:', human)",
    "print('the ' + 'end')",
)


async def test_a_fact_that_is_told_is_known_after_the_reconnect(
    chromium: Browser, jupyter: Jupyter, pictures: Path
) -> None:
    """An agent is made in the widget and told something; the next call reads it from Letta."""
    write(jupyter.folder / "memory.ipynb", MEMORY_CELLS)
    async with notebook(chromium, jupyter, pictures, "memory.ipynb", "the end") as page:
        widget = page.locator(".labvoice").first
        await widget.get_by_role("button", name="New agent").click()
        await expect(widget.get_by_label("Memory")).to_have_value(re.compile("^agent-"))
        log, talk = widget.locator(".lv-log"), widget.locator(".lv-talk")
        known = page.locator(".jp-Cell", has_text="and Letta knows")
        for number in (1, 2):
            await widget.get_by_role("button", name="Connect").click()
            await expect(log).to_contain_text("start speaking")
            if number == 1:
                # What is typed before cuts the greeting off, which then may have no line.
                await expect(talk.locator(".lv-agent")).to_have_count(1)
                await widget.get_by_label("Type to the agent").fill("My dog is called Rex.")
                await page.keyboard.press("Enter")
            else:
                await widget.screenshot(path=pictures / "memory.png")
            await expect(talk.locator(".lv-agent")).to_have_count(3 - number)
            async with asyncio.timeout(PATIENCE_S):
                while (await known.inner_text()).count("Rex") < number:
                    await known.locator(".jp-InputArea").click()
                    await page.keyboard.press("Control+Enter")
                    await asyncio.sleep(1)
            await widget.get_by_role("button", name="Hang up").click()
            await expect(widget.locator(".lv-phase")).to_have_text("Call ended")
        await known.locator(".jp-InputArea").click()
        await page.keyboard.press("Control+Enter")
        await expect(known).to_contain_text(re.compile("(ready and Letta knows: .*Rex.*\\s*){2}"))
