"""What `import labvoice` gives and loads, and where private names of LiveKit stand."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import labvoice
from tests.unit.recorded_runs import connect_run

_ROOT = Path(__file__).parents[2]

# What the base install has is found; what only an extra brings is as if it were not installed.
_BASE_ONLY = """
import re
import runpy
import sys
from importlib import metadata
from packaging.requirements import Requirement

def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()

base, left = set(), ["labvoice"]
while left:
    name = canonical(left.pop())
    if name in base:
        continue
    base.add(name)
    for requirement in map(Requirement, metadata.requires(name) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            left.append(requirement.name)

blocked = {
    module
    for module, homes in metadata.packages_distributions().items()
    if not base & set(map(canonical, homes))
}
assert {"livekit", "fastapi", "anywidget", "letta_client", "onnxruntime"} <= blocked

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} belongs to an extra", name=name)

for module in blocked & set(sys.modules):
    del sys.modules[module]
sys.meta_path.insert(0, Missing())
sys.argv[0] = "labvoice"
runpy.run_module("labvoice", run_name="__main__")
"""


def _python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_front_door_loads_nothing_else() -> None:
    """`import labvoice` imports no other module of ours and no package of others."""
    loaded = _python(
        "import sys; before = set(sys.modules); import labvoice\n"
        "print(*sorted(name for name in set(sys.modules) - before"
        " if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    assert loaded.split() == ["labvoice"]


@pytest.mark.parametrize("name", labvoice.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name of `__all__` can be imported from labvoice, and `dir` shows it."""
    assert getattr(labvoice, name) is not None
    assert name in dir(labvoice)


def test_the_version_is_the_packages() -> None:
    """`labvoice.__version__` is what the installed distribution says."""
    assert labvoice.__version__ == metadata.version("labvoice")


def test_an_unknown_name_is_refused() -> None:
    """A name that labvoice does not have raises AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="Labb"):
        labvoice.Labb  # noqa: B018


def _recorded(folder: Path) -> tuple[str, str]:
    base, new = folder / "base.jsonl", folder / "new.jsonl"
    connect_run(base, seed=1)
    connect_run(new, seed=2)
    return str(base), str(new)


def test_runs_are_compared_without_any_extra(tmp_path: Path) -> None:
    """`labvoice compare` works where only the base dependencies are installed."""
    assert "passed" in _python(_BASE_ONLY, "compare", *_recorded(tmp_path))


def test_runs_are_reported_without_any_extra(tmp_path: Path) -> None:
    """`labvoice report` works where only the base dependencies are installed."""
    out = tmp_path / "report.html"
    _python(_BASE_ONLY, "report", *_recorded(tmp_path), "--out", str(out))
    assert out.is_file()


def test_a_missing_extra_is_named() -> None:
    """A command that needs an extra says which package is missing and what to install."""
    done = subprocess.run(
        [sys.executable, "-c", _BASE_ONLY, "call"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "is not installed" in done.stderr
    assert 'pip install "labvoice[all]"' in done.stderr
    assert "Traceback" not in done.stderr


_LOADED = """
import sys
sys.argv[0] = "labvoice"
from labvoice.cli import main
try:
    main()
except SystemExit:
    pass
print("\\nloaded:", *sys.modules)
"""
_SERVICES = {"livekit", "fastapi", "httpx", "letta_client", "onnxruntime", "opentelemetry"}
_NUMBERS = {"numpy", "pandas", "pyarrow", "scipy", "matplotlib"}


def _loaded(*arguments: str) -> set[str]:
    """Returns what a command has imported at its end."""
    return set(_python(_LOADED, *arguments).rpartition("\nloaded:")[2].split())


@pytest.mark.parametrize("command", ["", "bench", "call", "compare", "lab"])
def test_help_loads_neither_numbers_nor_settings_nor_servers(command: str) -> None:
    """The help of a command waits for nothing but the command line."""
    loaded = _loaded(*command.split(), "--help")
    assert "typer" in loaded
    # Typer itself needs pydantic for a command's options.
    own = {"asyncio", "rich", "jinja2", "pydantic_settings", *({"pydantic"} if not command else ())}
    assert not {*_SERVICES, *_NUMBERS, *own} & loaded


def test_a_comparison_loads_only_what_it_needs(tmp_path: Path) -> None:
    """`labvoice compare` needs neither scipy, matplotlib, a recording's reader nor a server."""
    loaded = _loaded("compare", *_recorded(tmp_path))
    assert "pandas" in loaded
    assert (
        not {*_SERVICES, "scipy", "matplotlib", "soundfile", "jinja2", "pydantic_settings"} & loaded
    )


def test_a_report_loads_only_what_it_needs(tmp_path: Path) -> None:
    """`labvoice report` of runs without recordings needs neither scipy nor a server."""
    loaded = _loaded("report", *_recorded(tmp_path), "--out", str(tmp_path / "report.html"))
    assert "matplotlib" in loaded
    assert not {*_SERVICES, "scipy", "soundfile", "pydantic_settings"} & loaded


def test_the_picture_of_imports_has_every_room() -> None:
    """docs/images/imports.svg and the table in docs/architecture.md name the contract's rooms."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = [room.strip() for layer in layers for room in layer.split("|")]
    picture = (_ROOT / "docs/images/imports.svg").read_text(encoding="utf-8")
    assert re.findall(r'<text x="570" y="\d+" text-anchor="middle">(\w+)<', picture) == rooms
    page = (_ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert [room for row in rows for room in re.findall(r"`(\w+)`", row)][: len(rooms)] == rooms


def test_private_names_of_livekit_stand_in_one_module() -> None:
    """Only agent/_livekit.py names a private module, class or attribute of the LiveKit SDK."""
    private = re.compile(
        r"livekit[\w.]*\._\w|from livekit[\w.]* import \(?[^\n]*\b_[A-Za-z]"
        r"|\b(?:server|context|room|session|participant|request)\._(?!_)(?:api|info|load|ffi|room)\w*"
    )
    found = {
        str(path.relative_to(_ROOT))
        for path in (_ROOT / "labvoice").rglob("*.py")
        if private.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"labvoice/agent/_livekit.py"}


def test_every_dependency_is_locked_and_its_licence_is_stated() -> None:
    """The lock, whose wheels `tests/registry` checks, and docs/licences.md name each of them."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    shipped = [*project["dependencies"]]
    for name in ("agent", "lab", "service", "notebook", "scale"):
        shipped += extras[name]
    names = {re.match(r"[\w.-]+", each)[0] for each in shipped} - {"labvoice"}  # type: ignore[index]
    lock = (_ROOT / "requirements.lock").read_text(encoding="utf-8")
    licences = (_ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert {name for name in names if f"\n{name}==" not in lock} == set()
    assert {name for name in names if f"`{name}`" not in licences} == set()
