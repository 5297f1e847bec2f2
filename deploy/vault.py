"""The fleet's secrets: an encrypted vault next to the inventory, and its password.

The text has one `name: value` per line, so it can be edited (`ansible-vault edit`).
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
    """The vault does not exist, or its password is a different one."""


class Vault:
    """The vault of one inventory."""

    def __init__(self, inventory: Path) -> None:
        self.path = inventory.resolve().parent / "group_vars" / "all" / "vault.yml"

    def make(self) -> None:
        """Make the vault and its password unless they exist. Raises VaultClosed."""
        if self.path.exists():
            print(f"{self.path} exists already; `ansible-vault edit` changes it")
            return
        if "ANSIBLE_VAULT_PASSWORD_FILE" not in os.environ and not PASSWORD.exists():
            PASSWORD.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(PASSWORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(new_secret() + "\n")
            print(f"{PASSWORD} has the vault's password: store a copy in a safe place")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write("---\n" + "".join(f"{name}: {new_secret()}\n" for name in SECRETS))
        print(f"{self.path} has the fleet's secrets, encrypted")

    def read(self) -> str:
        """Return its text. Raises VaultClosed."""
        if not self.path.exists():
            raise VaultClosed(f"the vault {self.path} does not exist: `just secrets INVENTORY` makes one")
        return decrypt(self.path)

    def write(self, text: str) -> None:
        """Replace its text. Raises VaultClosed."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(encrypt(text))
        temporary.replace(self.path)


def decrypt(path: Path) -> str:
    """Return the text of an encrypted file. Raises VaultClosed."""
    return _vault("view", str(path))


def encrypt(text: str) -> str:
    """Return an encrypted text. Raises VaultClosed."""
    return _vault("encrypt", "--output", "-", stdin=text)


def new_secret() -> str:
    """Return a new secret."""
    return secrets.token_urlsafe(32)


def value(text: str, name: str) -> str:
    """Return the value of a name in a vault's text; "" when it has none."""
    match = re.search(rf"^{name}:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    return match[1].strip("'\"") if match else ""


def with_values(text: str, values: Mapping[str, str]) -> str:
    """Return a vault's text with changed values. An empty value removes its line; all else is unchanged."""
    lines = text.splitlines()
    for name, new in values.items():
        at = next((n for n, line in enumerate(lines) if line.startswith(f"{name}:")), len(lines))
        lines[at : at + 1] = [f"{name}: {new}"] if new else []
    return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    """Return the environment of Ansible's programs, with our settings and the vault's password."""
    env = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    if PASSWORD.exists():
        env.setdefault("ANSIBLE_VAULT_PASSWORD_FILE", str(PASSWORD))
    return env


def _vault(*arguments: str, stdin: str = "") -> str:
    run = subprocess.run(
        ["ansible-vault", *arguments],  # noqa: S607 (the one of this environment)
        input=stdin, env=environment(), stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        raise VaultClosed(
            f"`ansible-vault {arguments[0]}` failed; set ANSIBLE_VAULT_PASSWORD_FILE to use another password"
        )
    return run.stdout
