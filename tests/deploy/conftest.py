"""The files and variables of the roles for different machines, rendered once on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
INVENTORY = """
[redis]
box ansible_host=10.0.0.9
[routers]
box
other ansible_host=10.0.0.10
[agents]
box
third ansible_host=10.0.0.11 family=RedHat cortex_tls=true cortex_vllm=auto cortex_nvidia_driver=/proc/version
apart ansible_host=10.0.0.12 cortex_vllm=auto cortex_nvidia_driver=/nowhere cortex_engine_wheels=/srv/wheels
[monitoring]
other
"""
Decided = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rendered.json`: files of two machines and variables of all. It is also their prefix."""
    out = tmp_path_factory.mktemp("rendered")
    program = out / "opt" / "0.1.0+test" / "bin" / "cortex"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    inventory = out / "inventory"
    inventory.write_text(INVENTORY)
    variables = {
        "out": str(out), "cortex_prefix": str(out / "opt"), "cortex_version": "0.1.0+test",
        "cortex_redis_password": "p" * 16, "cortex_redis_admin_password": "a" * 16,
        "ansible_python_interpreter": sys.executable, "machine": "agents", "whole": ["box", "third"],
    }  # fmt: skip
    run = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), "--skip-tags", "always", "render.yml", "-e", json.dumps(variables)],
        env={**os.environ, "ANSIBLE_CONFIG": "ansible.cfg", "LC_ALL": "C.UTF-8"},
        cwd=ROOT / "deploy/ansible", capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def files(rendered: Path) -> Path:
    """The files of a machine that is router, host, Redis and monitoring."""
    return _laid_out(rendered, "box")


@pytest.fixture(scope="session")
def tls_files(rendered: Path) -> Path:
    """The files of a host whose fleet uses TLS."""
    return _laid_out(rendered, "third")


def _laid_out(rendered: Path, machine: str) -> Path:
    folder = rendered / machine
    folder.mkdir()
    for name, text in json.loads((rendered / "rendered.json").read_text())["files"][machine].items():
        for server in ("/usr/bin/redis-server", "/usr/bin/prometheus"):
            text = text.replace(f"ExecStart={server}", "ExecStart=/bin/true")  # not installed here
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def decided(rendered: Path) -> Decided:
    """Variables that depend on family and hardware, by machine."""
    variables: Decided = json.loads((rendered / "rendered.json").read_text())["decided"]
    return variables
