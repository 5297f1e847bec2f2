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

Further arguments go to ansible-playbook: --limit, --tags, --check --diff, -e. Ctrl-C and SIGTERM end Ansible in its own
time; run the same command again to continue.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

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
PARTIAL = ("--limit", "-l", "--tags", "-t", "--skip-tags", "--check", "-C")
"""Ansible's options that leave machines or steps out."""


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
            return rotate_token(inventory, arguments)
    except VaultClosed as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    has_version = any("cortex_version" in a for a in arguments)
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


def rotate_token(inventory: str, arguments: Sequence[str]) -> int:
    """Replace the fleet's token on all machines, or remove the old one; return the exit code. Raises VaultClosed."""
    further = [a for a in arguments if a != "--finish"]
    if some := [a for a in further if a.startswith(PARTIAL)]:
        print(f"deploy: rotate-token is for all machines at a time, and {some[0]} leaves some out", file=sys.stderr)
        return 2
    step = rotation.finish if "--finish" in arguments else rotation.rotate
    return step(Path(inventory), lambda playbook, *fixed: play(inventory, playbook, *fixed, *further))


def play(inventory: str, playbook: str, *arguments: str, verbose: bool = False) -> int:
    """Run a playbook; return its exit code. It prints changes only, or everything if `verbose`."""
    env = environment() | ({"ANSIBLE_DISPLAY_OK_HOSTS": "true"} if verbose else {})
    argv = ["ansible-playbook", "-i", inventory, str(ANSIBLE / playbook), *arguments]
    with subprocess.Popen(argv, env=env) as ansible:
        signals: list[int] = []

        def interrupt(number: int, _frame: FrameType | None) -> None:
            signals.append(number)
            if number == signal.SIGTERM:  # a terminal sends SIGINT to Ansible too
                ansible.send_signal(signal.SIGINT)

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = ansible.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if signals:
        print("deploy: interrupted; run the same command again to continue", file=sys.stderr)
        return code or 130
    return code


if __name__ == "__main__":
    sys.exit(main())
