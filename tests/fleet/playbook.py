"""Running the deployment as an operator does, and reading what it says it changed."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fleet.machines import Host, ssh_options

ROOT = Path(__file__).resolve().parent.parent.parent
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


class DeployFailed(Exception):
    """A playbook failed; the text is the end of what it said."""


class Deployment:
    """An inventory in a folder of its own, and the commands of `just` on it."""

    def __init__(self, folder: Path, key: Path) -> None:
        self._folder, self._key = folder, key
        folder.mkdir(parents=True)
        self._inventory = folder / "hosts.json"
        self._env = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "ANSIBLE_NOCOLOR": "1"}
        self.models = folder / "models.toml"
        self.runs = 0

    def write(self, control: Host, agents: dict[Host, list[dict[str, object]]]) -> None:
        """Write the inventory: one machine for all but the agents, and which devices those declare."""
        hosts = {h.name: {"ansible_host": h.address, "cortex_devices": devices} for h, devices in agents.items()}
        front = {control.name: {"ansible_host": control.address}}
        inventory = {
            "all": {
                "vars": {
                    "ansible_user": "root",
                    "ansible_ssh_private_key_file": str(self._key),
                    "ansible_ssh_common_args": " ".join(ssh_options(self._key)[2:]),
                    "cortex_models_file": str(self.models),
                    "cortex_tls": True,
                },
                "children": {
                    **{role: {"hosts": front} for role in ("redis", "routers", "monitoring")},
                    "agents": {"hosts": hosts},
                },
            }
        }
        self._inventory.write_text(json.dumps(inventory, indent=2))  # JSON is YAML

    def run(self, command: str, *arguments: str, timeout_s: float = 900) -> dict[str, int]:
        """Run one command; return how many tasks changed each host. Raises DeployFailed."""
        self.runs += 1
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "deploy.run", command, str(self._inventory), *arguments],
            cwd=ROOT, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        log = self._folder / f"{self.runs:02d}-{command}.log"
        log.write_text(done.stdout)
        print(f"fleet:   just {command} {' '.join(arguments)}: {time.monotonic() - began:.1f} s", flush=True)
        if done.returncode:
            raise DeployFailed(done.stdout[-3000:])
        changed: Counter[str] = Counter()
        for recap in RECAP.finditer(done.stdout):  # a deployment is more than one playbook
            changed[recap[1]] += int(recap[3])
        return dict(changed)

    def output(self) -> str:
        """Return what the last command printed."""
        (log,) = self._folder.glob(f"{self.runs:02d}-*.log")
        return log.read_text()


def build(label: str) -> str:
    """Build a wheelhouse of this checkout under a label, anew; return the version."""
    for old in (ROOT / "dist/wheelhouse").glob(f"*+{label}.tar"):
        old.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "deploy.wheelhouse", "--label", label, "--python", "3.11"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=600, check=True,
    )  # fmt: skip
    return done.stdout.split()[-1]
