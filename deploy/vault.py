"""The fleet's secrets: a vault beside its inventory, encrypted, and the password that opens it.

The text in it is one `name: value` to a line, so that people can read and edit it (`ansible-vault edit`).
"""

import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

ANSIBLE = Path(__file__).resolve().parent / "ansible"
PASSWORD = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "cortex" / "vault.password"
SECRETS = ("cortex_fleet_token", "cortex_redis_password", "cortex_redis_router_password", "cortex_redis_admin_password")


class VaultClosed(Exception):
    """The vault is not there, or its password is not the one we have."""


class Vault:
    """The vault of one inventory."""

    def __init__(self, inventory: Path) -> None:
        self.path = inventory.resolve().parent / "group_vars" / "all" / "vault.yml"

    def make(self) -> None:
        """Make it, and the password that opens it, unless they are there. Raises VaultClosed."""
        if self.path.exists():
            print(f"{self.path} is there already; `ansible-vault edit` changes it")
            return
        if "ANSIBLE_VAULT_PASSWORD_FILE" not in os.environ and not PASSWORD.exists():
            PASSWORD.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(PASSWORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made() + "\n")
            print(f"{PASSWORD} opens the vault: keep a copy of it somewhere safe")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write("---\n" + "".join(f"{name}: {made()}\n" for name in SECRETS))
        print(f"{self.path} holds the fleet's secrets, encrypted")

    def read(self) -> str:
        """Return its text. Raises VaultClosed."""
        if not self.path.exists():
            raise VaultClosed(f"there is no vault {self.path}: `just secrets INVENTORY` makes one")
        return opened(self.path)

    def write(self, text: str) -> None:
        """Replace its text. Raises VaultClosed."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(sealed(text))
        fresh.replace(self.path)


def opened(path: Path) -> str:
    """Return the text of a sealed file. Raises VaultClosed."""
    return _vault("view", str(path))


def sealed(text: str) -> str:
    """Return a text as it is kept. Raises VaultClosed."""
    return _vault("encrypt", "--output", "-", said=text)


def made() -> str:
    """Return a new secret."""
    return secrets.token_urlsafe(32)


def value(text: str, name: str) -> str:
    """Return what a vault's text has under a name; empty when it has nothing."""
    found = re.search(rf"^{name}:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    return found[1].strip("'\"") if found else ""


def changed(text: str, values: Mapping[str, str]) -> str:
    """Return a vault's text with other values; an empty one takes its line out. Everything else stays as it is."""
    lines = text.splitlines()
    for name, wanted in values.items():
        at = next((n for n, line in enumerate(lines) if line.startswith(f"{name}:")), len(lines))
        lines[at : at + 1] = [f"{name}: {wanted}"] if wanted else []
    return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    """Return what Ansible's programs are started with: our settings, and the vault's password."""
    env = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    if PASSWORD.exists():
        env.setdefault("ANSIBLE_VAULT_PASSWORD_FILE", str(PASSWORD))
    return env


def _vault(*arguments: str, said: str = "") -> str:
    done = subprocess.run(
        ["ansible-vault", *arguments],  # noqa: S607 (the one beside our Python)
        input=said, env=environment(), stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise VaultClosed(f"`ansible-vault {arguments[0]}` failed; ANSIBLE_VAULT_PASSWORD_FILE names another password")
    return done.stdout
