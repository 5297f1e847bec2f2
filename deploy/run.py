"""What `just deploy` and its sisters run: Ansible from this checkout, with its settings and the vault's password.

    deploy INVENTORY [ARGS…]      build the wheelhouse of this checkout, bring the fleet to it
    models INVENTORY [ARGS…]      push models.toml alone
    rollback INVENTORY [ARGS…]    every machine back to the version it had before
    status INVENTORY [ARGS…]      what runs where
    undeploy INVENTORY [ARGS…]    drain, stop and remove; with --limit, only there
    secrets INVENTORY             make the fleet's secrets beside the inventory, encrypted

Further arguments go to ansible-playbook: --limit, --tags, --check --diff, -e.
"""

import os
import secrets
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ANSIBLE = HERE / "ansible"
VAULT_PASSWORD = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "cortex" / "vault.password"
PLAYBOOKS = {
    "deploy": ["site.yml"],
    "models": ["models.yml"],
    "rollback": ["site.yml", "-e", "cortex_rollback=true"],
    "status": ["status.yml"],
    "undeploy": ["undeploy.yml"],
}
SECRETS = ("cortex_fleet_token", "cortex_redis_password", "cortex_redis_admin_password")


def main() -> int:
    """Run one command; return its exit code."""
    if len(sys.argv) < 3 or sys.argv[1] not in (*PLAYBOOKS, "secrets"):
        print(__doc__, file=sys.stderr)
        return 2
    command, inventory, *arguments = sys.argv[1:]
    if not Path(inventory).exists():
        print(f"deploy: there is no inventory {inventory}; {ANSIBLE / 'inventory'} has examples", file=sys.stderr)
        return 2
    if command == "secrets":
        return make_secrets(Path(inventory))
    named = any(a.startswith("cortex_version=") for a in arguments)
    if command == "deploy" and not named:
        built = subprocess.run([sys.executable, str(HERE / "wheelhouse.py")], check=False)
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
    env = _env() | ({"ANSIBLE_DISPLAY_OK_HOSTS": "true"} if all_it_says else {})
    argv = ["ansible-playbook", "-i", inventory, str(ANSIBLE / playbook), *arguments]
    return subprocess.run(argv, env=env, check=False).returncode


def make_secrets(inventory: Path) -> int:
    """Make the vault beside an inventory, and the password that opens it, unless they are there."""
    vault = inventory.resolve().parent / "group_vars" / "all" / "vault.yml"
    if vault.exists():
        print(f"{vault} is there already; `ansible-vault edit` changes it")
        return 0
    if "ANSIBLE_VAULT_PASSWORD_FILE" not in os.environ and not VAULT_PASSWORD.exists():
        VAULT_PASSWORD.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(VAULT_PASSWORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        print(f"{VAULT_PASSWORD} opens the vault: keep a copy of it somewhere safe")
    text = "---\n" + "".join(f"{name}: {secrets.token_urlsafe(32)}\n" for name in SECRETS)
    argv = ["ansible-vault", "encrypt", "--output", "-"]
    sealed = subprocess.run(argv, input=text, env=_env(), stdout=subprocess.PIPE, text=True, check=False)
    if sealed.returncode:
        return sealed.returncode
    vault.parent.mkdir(parents=True, exist_ok=True)
    vault.write_text(sealed.stdout)
    print(f"{vault} holds the fleet's secrets, encrypted")
    return 0


def _env() -> dict[str, str]:
    env = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    if VAULT_PASSWORD.exists():
        env.setdefault("ANSIBLE_VAULT_PASSWORD_FILE", str(VAULT_PASSWORD))
    return env


if __name__ == "__main__":
    sys.exit(main())
