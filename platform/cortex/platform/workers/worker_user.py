"""The separate user of workers, where configured: an agent running as root drops root for each worker.

A worker can then read its own temporary directory, its engine's cache and world-readable files, but not the agent's
token, state, settings and logs.
"""

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cortex.platform.settings import Agent, SettingsError


class WorkerUser(Struct, frozen=True, kw_only=True):
    """A user of this host, and the `setpriv` program that switches to it."""

    name: str
    uid: int
    gid: int
    home: str
    setpriv: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` as this user, with its groups and without capabilities."""
        caps = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
        return [self.setpriv, f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *caps, "--", *argv]

    def environment(self, cache: str) -> dict[str, str]:
        """Return the environment variables that describe the user."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "XDG_CACHE_HOME": f"{cache}/xdg"}

    def own(self, folder: Path) -> None:
        """Create a folder owned by the user. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)


def share_cache(agent: Agent) -> None:
    """Make this process's new files, for example weights, readable for the workers' user. State and logs stay private.

    Every process of cortex starts with umask 077, which suits workers that run as the agent's own user.
    """
    if not agent.worker_user:
        return
    for folder in (agent.state_dir, agent.log_dir):
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    os.umask(0o022)


def find_user(name: str) -> WorkerUser | None:
    """Return the user of this name; None for "". Raises SettingsError."""
    if not name:
        return None
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        raise SettingsError("[agent] worker_user: the agent must run as root, with setpriv (util-linux) installed")
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise SettingsError(f"[agent] worker_user: this host has no user {name!r}") from None
    if entry.pw_uid == 0:
        raise SettingsError("[agent] worker_user: must not be root")
    return WorkerUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir, setpriv=setpriv)
