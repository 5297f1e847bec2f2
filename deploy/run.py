"""Runs Ansible from this checkout for `just deploy` and related recipes, with its settings and the vault's password.

    python -m deploy.run COMMAND INVENTORY

    deploy INVENTORY [ARGS…]      build the wheelhouse of this checkout, and deploy it to the fleet
    models INVENTORY [ARGS…]      push models.toml only
    rollback INVENTORY [ARGS…]    return every machine to its previous version
    status INVENTORY [ARGS…]      show what runs on each machine
    undeploy INVENTORY [ARGS…]    drain, stop and remove; with --limit, only on those machines
    secrets INVENTORY             make the fleet's secrets, encrypted, next to the inventory
    certificates INVENTORY        make or renew the fleet's authority and certificates
    rotate-token INVENTORY        replace the fleet's token while everything runs; with --finish, remove the old one

Further arguments go to ansible-playbook: --limit, --tags, --check --diff, -e.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from deploy import certificates, rotation
from deploy.vault import ANSIBLE, Vault, VaultClosed, environment

ROOT = Path(__file__).resolve().parent.parent
PLAYBOOKS = {
    "deploy": ["site.yml"],
    "models": ["models.yml"],
    "rollback": ["site.yml", "-e", "cortex_rollback=true"],
    "status": ["status.yml"],
    "undeploy": ["undeploy.yml"],
}


def main() -> int:
    """Run one command; return its exit code."""
    if len(sys.argv) < 3 or sys.argv[1] not in (*PLAYBOOKS, "secrets", "certificates", "rotate-token"):
        print(__doc__, file=sys.stderr)
        return 2
    command, inventory, *arguments = sys.argv[1:]
    if not Path(inventory).exists():
        print(f"deploy: {inventory} does not exist; {ANSIBLE / 'inventory'} has examples", file=sys.stderr)
        return 2
    try:
        if command == "secrets":
            Vault(Path(inventory)).make()
            return 0
        if command == "certificates":
            return certificates.provide(Path(inventory))
        if command == "rotate-token":
            step = rotation.finish if "--finish" in arguments else rotation.rotate
            return step(Path(inventory), partial(play, inventory))
    except VaultClosed as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    has_version = any(a.startswith("cortex_version=") for a in arguments)
    if command == "deploy" and not has_version:
        build = subprocess.run([sys.executable, "-m", "deploy.wheelhouse"], cwd=ROOT, check=False)
        if build.returncode:
            return build.returncode
    playbook, *fixed = PLAYBOOKS[command]
    code = play(inventory, playbook, *fixed, *arguments, verbose=command == "status")
    if code == 0 and playbook == "site.yml" and not {"--check", "-C"}.intersection(arguments):
        passwords = [a for n, a in enumerate(arguments) if "vault" in a or (n and "vault" in arguments[n - 1])]
        return play(inventory, "ask.yml", *passwords, verbose=True)
    return code


def play(inventory: str, playbook: str, *arguments: str, verbose: bool = False) -> int:
    """Run a playbook; return its exit code. It prints changes only, or everything if `verbose`."""
    env = environment() | ({"ANSIBLE_DISPLAY_OK_HOSTS": "true"} if verbose else {})
    argv = ["ansible-playbook", "-i", inventory, str(ANSIBLE / playbook), *arguments]
    return subprocess.run(argv, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
