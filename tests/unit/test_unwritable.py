"""Folders that cannot be written: a read-only home, or somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from labvoice.errors import SettingsError
from labvoice.health.doctor import examine
from labvoice.lab import Lab
from labvoice.settings import load_settings


@pytest.mark.parametrize("who", ["lab", "doctor"])
async def test_a_data_folder_that_cannot_be_made(who: str, tmp_path: Path) -> None:
    """Whoever needs it says so at once, and which setting names another one."""
    (tmp_path / "home").write_text("a file, in which nobody can make a folder, root neither")
    settings = load_settings(data_dir=tmp_path / "home" / "labvoice")
    with pytest.raises(SettingsError, match="cannot be written") as raised:
        await (Lab(settings=settings).start() if who == "lab" else examine(settings))
    assert "LABVOICE_DATA_DIR" in raised.value.hint
