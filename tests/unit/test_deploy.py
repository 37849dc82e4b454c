"""Deployment: images, compose file and manifests are valid, and name what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from labvoice.settings import Settings
from labvoice.web.settings import WebSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
_OTHERS = {"LIVEKIT_KEYS", "NODE_IP", "UDP_PORT"}  # of the LiveKit server itself


class Image(NamedTuple):
    """What an image runs: its command, its variables, its user and group."""

    command: list[str]
    env: dict[str, str]
    user: str


def image(name: str) -> Image:
    """Reads an image of the Dockerfile."""
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    (stage,) = re.findall(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", lines, re.M | re.S)
    said: dict[str, str] = dict(re.findall(r"^(ENV|USER|ENTRYPOINT|CMD) (.*)$", stage, re.M))
    command = [*json.loads(said["ENTRYPOINT"]), *json.loads(said.get("CMD", "[]"))]
    env = dict(each.split("=", 1) for each in shlex.split(said.get("ENV", "")))
    return Image(command, env, said["USER"])


def documents() -> list[dict[str, Any]]:
    """All objects of the manifests."""
    return [each for path in KUBERNETES for each in yaml.safe_load_all(path.read_text())]


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
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named = {name for each in compose["services"].values() for name in each["environment"]}
    named |= {each["name"] for _, container in containers() for each in container["env"]}
    assert named <= known | _OTHERS


def test_a_worker_has_time_to_drain() -> None:
    """After SIGTERM nobody kills a worker before its own limit for the last calls is over."""
    limit_s = Settings.model_fields["drain_timeout_s"].default
    (pod, container), *_ = [each for each in containers() if each[1]["name"] == "worker"]
    (set_s,) = [e["value"] for e in container["env"] if e["name"] == "LABVOICE_DRAIN_TIMEOUT_S"]
    assert float(set_s) == limit_s < pod["terminationGracePeriodSeconds"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
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
