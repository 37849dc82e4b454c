"""What a stranger installs: the wheel, the lock file, the environment file, the Makefile."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from labvoice.cli.stack import own_notebooks

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The `[project]` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    """Each locked requirement's block of text by its name."""
    text = (_ROOT / "requirements.lock").read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    return {re.split(r"[=\[ ]", block, maxsplit=1)[0]: block for block in blocks}


def test_wheel_has_all_files_of_the_package(tmp_path: Path) -> None:
    """A wheel holds every file of labvoice/, the server's Go module, notebooks and the licence."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=_ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(path.relative_to(_ROOT))
        for path in (_ROOT / "labvoice").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"labvoice/stack/livekit/go/go.mod", "labvoice/stack/livekit/go/go.sum"} <= ours
    assert ours <= packed
    notebooks = {path.name for path in (_ROOT / "notebooks").glob("*.ipynb")}
    assert {f"labvoice/notebooks/{name}" for name in notebooks} <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_notebooks_are_copied_once(tmp_path: Path) -> None:
    """`labvoice lab` in an empty folder brings the notebooks, and keeps what is changed in them."""
    folder = own_notebooks(tmp_path / "notebooks")
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (_ROOT / "notebooks").glob("*.ipynb")}
    (folder / "01-first-call.ipynb").write_text("changed")
    own_notebooks(folder)
    assert (folder / "01-first-call.ipynb").read_text() == "changed"


def test_every_locked_requirement_is_pinned_with_hashes(lock: dict[str, str]) -> None:
    """Each requirement of the lock file has one exact version and at least one SHA-256."""
    assert len(lock) > 50
    for name, block in lock.items():
        assert re.match(r"[a-z0-9-]+==[^ ;]+", block), name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name


def test_lock_fulfils_every_dependency(project: dict[str, Any], lock: dict[str, str]) -> None:
    """Each dependency of pyproject.toml, those of all extras, is locked at a version it allows."""
    extras = itertools.chain(*project["optional-dependencies"].values())
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        name = canonicalize_name(requirement.name)
        if name == project["name"]:  # an extra that contains another one
            continue
        assert name in lock, f"run `make lock`: {name} is missing"
        version = lock[name].split("==")[1].split()[0]
        assert requirement.specifier.contains(version, prereleases=True), (
            f"run `make lock`: {name} {version} is locked, {requirement} is wanted"
        )


def test_lock_names_no_host() -> None:
    """The lock file does not say where it was resolved from."""
    text = (_ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b", text, re.MULTILINE)


def test_environment_file_agrees_with_pyproject(project: dict[str, Any]) -> None:
    """environment.yml has conda-forge's Python that is allowed, and everything of ours."""
    environment = yaml.safe_load((_ROOT / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    assert environment["channels"][0] == "conda-forge"
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (python,) = [entry for entry in plain if entry.startswith("python=")]
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))
    assert "pip" in plain
    (extras,) = [re.fullmatch(r"-e \.\[(.+)\]", entry) for entry in pip]
    assert extras is not None
    assert set(extras[1].split(",")) == {"all", "dev"}


def test_pre_commit_hooks_are_local() -> None:
    """The hooks are valid and fetch nothing: they run what the lock file installed."""
    path = _ROOT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(path)], check=True)
    assert {repo["repo"] for repo in yaml.safe_load(path.read_text())["repos"]} == {"local"}


@pytest.mark.parametrize(
    ("target", "last"),
    [("demo", ".venv/bin/labvoice demo"), ("test", ".venv/bin/python -m pytest")],
)
def test_make_sets_up_from_the_lock_first(target: str, last: str) -> None:
    """`make demo` and `make test` install from the lock file with its hashes, then do their job."""
    # `make test` itself runs this test: its own flags would have make announce each directory.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=_ROOT,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert any("pip sync" in line and "--require-hashes requirements.lock" in line for line in said)
    assert said[-1].startswith(last)


def test_uv_for_bare_machines_comes_from_the_lock(lock: dict[str, str], tmp_path: Path) -> None:
    """Without uv on PATH, make fetches the locked version of uv into the user's cache."""
    target = f"{tmp_path}/labvoice/uv-{lock['uv'].split('==')[1].split()[0]}/bin/uv"
    said = subprocess.run(
        ["make", "--dry-run", target, f"XDG_CACHE_HOME={tmp_path}"],
        cwd=_ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "--require-hashes" in said.stdout
