"""The examples of deployment name paths, options and settings that exist. No image is built here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from rusteeze.cli.serve import command
from rusteeze.server.access import OPEN_PATHS
from rusteeze.server.app import ROUTES
from rusteeze.server.config import ServeConfig, read_file

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PATHS = {route.path for route in ROUTES}  # type: ignore[attr-defined]


def test_the_example_shows_every_setting_with_its_default() -> None:
    shown = read_file(DEPLOY / "rusteeze.yaml")
    assert msgspec.convert(shown, ServeConfig) == ServeConfig()
    assert shown == msgspec.to_builtins(ServeConfig()) | {"server": shown["server"]}
    assert set(shown["server"]) == set(msgspec.to_builtins(ServeConfig())["server"])


def test_kubernetes() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    assert set(probes) <= PATHS
    options = {option for parameter in command.params for option in parameter.opts}
    given = container["args"][::2]
    assert set(given) <= options
    drain = float(container["args"][container["args"].index("--drain-seconds") + 1])
    assert pod["terminationGracePeriodSeconds"] > drain + 5
    assert pod["securityContext"]["runAsNonRoot"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_prometheus_brings_the_key() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    monitor = yaml.safe_load((DEPLOY / "servicemonitor.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["path"] in PATHS - OPEN_PATHS
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (key,) = [e["valueFrom"]["secretKeyRef"] for e in container["env"] if e["name"] == "RUSTEEZE_API_KEY"]
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": key}
    assert "annotations" not in deployment["spec"]["template"]["metadata"]


def test_the_image_is_lean_and_without_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM ", text, re.M)) == 2
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", last, re.M)
    health = re.search(r"^HEALTHCHECK .*?(/health/\w+)", last, re.M | re.S)
    assert health is not None
    assert health[1] in PATHS
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert 'ENTRYPOINT ["rusteeze", "serve"]' in last
