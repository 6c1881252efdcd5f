"""The files of ``deploy/``, as far as they can be checked without Docker and without running systemd."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncflow.cli.serve import serve
from syncflow.engine.serving.server import STREAMS

from .test_documentation import parse, read_variables

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DRAIN = inspect.signature(serve).parameters["drain"].default + STREAMS


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """Settings of the unit; one that is given twice has two values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "syncflow.service").read_text().splitlines():
        if re.match(r"[A-Z]\w+=", line):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def stages(dockerfile: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """The instructions of every stage, those of the stages that it begins with included."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, value in dockerfile:
        if name == "FROM":
            source, _, stage = value.split()
            found[stage] = [*found.get(source, ())]
        elif found:
            found[stage].append((name, value))
    return found


def test_the_dockerfile_takes_what_is_there(dockerfile):
    found = stages(dockerfile)
    assert {"cpu", "gpu"} <= found.keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, value in dockerfile:
        if name == "COPY" and value.startswith("--from="):
            stage, source, _ = value.split()
            assert any(source in made for _, made in found[stage.removeprefix("--from=")])
        for group in re.findall(r'"\.\[([\w,]+)\]"', value):
            assert set(group.split(",")) <= extras.keys()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[1] == "*" and all((ROOT / path).exists() for path in sent)
    packages = re.search(r"PACKAGES = \(([^)]*)\)", (ROOT / "setup.py").read_text())[1]
    needed = {*re.findall(r'"(\w+)"', packages), "csrc", "CMakeLists.txt", "pyproject.toml", "constraints.txt"}
    assert needed <= set(sent)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_serve_without_root(dockerfile, target):
    instructions = dict(stages(dockerfile)[target])  # the last of each kind
    assert instructions["USER"] == "10001:10001"
    command = [*json.loads(instructions["ENTRYPOINT"]), *json.loads(instructions["CMD"])]
    assert command[0] == "syncflow"
    parse(command[1:], True)
    assert instructions["EXPOSE"] == "8000" and "127.0.0.1:8000/health" in instructions["HEALTHCHECK"]
    given = set(re.findall(r"SYNCFLOW_\w+", str(stages(dockerfile)[target])))
    assert given <= read_variables()


def test_the_services_of_compose(compose, dockerfile):
    targets, ports = stages(dockerfile), []
    for service in compose["services"].values():
        assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
            DEPLOY / "Dockerfile"
        )
        assert service["build"]["target"] in targets
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN
        ports += [port.rpartition(":")[0] for port in service["ports"]]
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= compose["volumes"].keys()
        assert set(service["secrets"]) <= compose["secrets"].keys()
        (secret,) = service["secrets"]
        assert f"/run/secrets/{secret}" in dict(targets[service["build"]["target"]])["CMD"]
    assert len(set(ports)) == len(ports) and all(port.startswith("127.0.0.1:") for port in ports)


def test_the_command_of_the_unit(unit):
    (command,) = unit["ExecStart"]
    program, *arguments = shlex.split(command)
    assert Path(program).name == "syncflow"
    parse(arguments, True)
    assert int(unit["TimeoutStopSec"][0]) > DRAIN
    assert "/proc/cpuinfo" in (ROOT / "engine/runtime/selection/processor.py").read_text()
    assert "ProcSubset" not in unit and "MemoryDenyWriteExecute" not in unit
    assert set(re.findall(r"SYNCFLOW_\w+", str(unit))) <= read_variables()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    found = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / "syncflow.service"
    unit.write_text((DEPLOY / "syncflow.service").read_text().replace("/opt/syncflow/bin/syncflow", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in rated.stderr:
        pytest.skip("systemd before 250 cannot rate a file")
    assert rated.returncode == 0, rated.stdout[-300:] + rated.stderr
