"""JupyterLab in a real browser whose microphone the tests speak into."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Playwright, async_playwright, expect

from labvoice.settings import load_settings
from labvoice.speech.utterances import Utterance, human_utterances
from labvoice.stack.processes import ManagedProcess, free_port

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ROOT = Path(__file__).parents[2]
FLAGS = ["--autoplay-policy=no-user-gesture-required", "--no-sandbox"]
"""CI runs as root in a container, where Chromium's own sandbox cannot be made."""
PATIENCE_S = 90
"""How long a page may take where its time is not what is tested: two cores have other tests too."""
expect.set_options(timeout=PATIENCE_S * 1000)


@dataclass(frozen=True)
class Jupyter:
    """A running JupyterLab on a copy of the notebooks.

    Attributes:
        url: Its address.
        token: What it asks for.
        folder: Where its notebooks are.
    """

    url: str
    token: str
    folder: Path

    def page(self, notebook: str, *, lab: bool = True) -> str:
        """Address of a fresh copy of a notebook, without outputs that an earlier test has saved.

        In JupyterLab with a workspace of its own, or in Notebook 7.
        """
        copy = f"{secrets.token_hex(4)}-{notebook}"
        shutil.copy(self.folder / notebook, self.folder / copy)
        way = f"lab/workspaces/{secrets.token_hex(4)}/tree" if lab else "notebooks"
        return f"{self.url}/{way}/{copy}?token={self.token}"

    async def until_kernel_idles(self) -> None:
        """Waits until a kernel is idle and a page is connected to it: only then do cells run."""
        async with asyncio.timeout(60), self._api() as http:
            while True:
                kernels = (await http.get("/kernels")).json()
                if any(k["execution_state"] == "idle" and k["connections"] for k in kernels):
                    return
                await asyncio.sleep(0.2)

    async def end_kernels(self) -> None:
        """Ends all kernels, and with them the labs that they have started."""
        async with self._api() as http:
            for session in (await http.get("/sessions")).json():
                (await http.delete(f"/sessions/{session['id']}")).raise_for_status()

    def _api(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"token {self.token}"}
        return httpx.AsyncClient(
            base_url=f"{self.url}/api", headers=headers, timeout=60, trust_env=False
        )


@pytest.fixture(scope="session")
async def jupyter(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jupyter]:
    """One JupyterLab for all tests; each ends the kernels that it began."""
    folder = tmp_path_factory.mktemp("jupyter")
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(notebook, folder)
    overrides = folder / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    overrides.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": quiet}))
    port, token = free_port(), secrets.token_hex(16)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
    }
    process = await ManagedProcess.start(
        "jupyterlab",
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            f"--notebook-dir={folder}",
        ],
        log_path=folder / "jupyter.log",
        env=environment,
    )
    address = f"http://127.0.0.1:{port}"

    async def ready() -> bool:
        async with httpx.AsyncClient() as http:
            try:
                answer = await http.get(f"{address}/api/status", params={"token": token})
            except httpx.HTTPError:
                return False
        return answer.status_code == 200

    await process.until_ready(ready, timeout_s=60, hint="its log tells")
    yield Jupyter(address, token, folder)
    await process.stop()


@pytest.fixture(scope="session")
async def playwright() -> AsyncIterator[Playwright]:
    """Playwright, once."""
    async with async_playwright() as running:
        yield running


@pytest.fixture(scope="session")
async def chromium(playwright: Playwright) -> AsyncIterator[Browser]:
    """Debian's Chromium, with a microphone that is granted."""
    browser = await playwright.chromium.launch(
        executable_path=shutil.which("chromium"),
        args=[*FLAGS, "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"],
    )
    yield browser
    await browser.close()


@pytest.fixture(scope="session")
async def refusing_chromium(playwright: Playwright) -> AsyncIterator[Browser]:
    """A browser that denies every permission."""
    browser = await playwright.chromium.launch(
        executable_path=shutil.which("chromium"),
        args=[*FLAGS, "--deny-permission-prompts", "--use-fake-device-for-media-stream"],
    )
    yield browser
    await browser.close()


@pytest.fixture(scope="session")
def recorded() -> list[Utterance]:
    """Clauses spoken by a human."""
    return human_utterances(load_settings())


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are kept: `runs/screenshots`, or the folder LABVOICE_SCREENSHOTS."""
    folder = Path(os.environ.get("LABVOICE_SCREENSHOTS", ROOT / "runs" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
