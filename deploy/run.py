"""What `just deploy` and its sisters run: Ansible from this checkout, with its settings and the vault's password.

    python -m deploy.run COMMAND INVENTORY

    deploy INVENTORY [ARGS…]      build the wheelhouse of this checkout, bring the fleet to it
    models INVENTORY [ARGS…]      push models.toml alone
    rollback INVENTORY [ARGS…]    every machine back to the version it had before
    status INVENTORY [ARGS…]      what runs where
    undeploy INVENTORY [ARGS…]    drain, stop and remove; with --limit, only there
    secrets INVENTORY             make the fleet's secrets beside the inventory, encrypted
    certificates INVENTORY        make the fleet's authority and machines' certificates, or those that grow old
    rotate-token INVENTORY        change the fleet's token while everything runs; with --finish, forget the old one

Further arguments go to ansible-playbook: --limit, --tags, --check --diff, -e.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from deploy import certificates, rotation
from deploy.vault import ANSIBLE, Vault, VaultClosed, environment

WHEELHOUSE = Path(__file__).resolve().parent / "wheelhouse.py"
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
        print(f"deploy: there is no inventory {inventory}; {ANSIBLE / 'inventory'} has examples", file=sys.stderr)
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
    named = any(a.startswith("cortex_version=") for a in arguments)
    if command == "deploy" and not named:
        built = subprocess.run([sys.executable, str(WHEELHOUSE)], check=False)
        if built.returncode:
            return built.returncode
    playbook, *fixed = PLAYBOOKS[command]
    code = play(inventory, playbook, *fixed, *arguments, all_it_says=command == "status")
    if code == 0 and playbook == "site.yml" and not {"--check", "-C"}.intersection(arguments):
        passwords = [a for n, a in enumerate(arguments) if "vault" in a or (n and "vault" in arguments[n - 1])]
        return play(inventory, "ask.yml", *passwords, all_it_says=True)
    return code


def play(inventory: str, playbook: str, *arguments: str, all_it_says: bool = False) -> int:
    """Run one playbook; return its exit code. It prints what changed, and the rest only where that is the point."""
    env = environment() | ({"ANSIBLE_DISPLAY_OK_HOSTS": "true"} if all_it_says else {})
    argv = ["ansible-playbook", "-i", inventory, str(ANSIBLE / playbook), *arguments]
    return subprocess.run(argv, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
