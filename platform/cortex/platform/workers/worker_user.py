"""As whom workers run, where they have a user of their own: an agent that is root gives root up for each of them.

What a worker finds then is its own temporary directory, its engine's cache and what everybody may read. The agent's
token, state and settings, and the logs, are none of that.
"""

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cortex.platform.settings import Agent, SettingsError


class WorkerUser(Struct, frozen=True, kw_only=True):
    """A user of this host."""

    name: str
    uid: int
    gid: int
    home: str
    setpriv: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that becomes `argv` as this user, with its groups and no capability."""
        caps = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
        return [self.setpriv, f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *caps, "--", *argv]

    def environment(self, cache: str) -> dict[str, str]:
        """Return what its workers are told of it."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "XDG_CACHE_HOME": f"{cache}/xdg"}

    def own(self, folder: Path) -> None:
        """Make a folder, and give it to the user. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)


def share_cache(agent: Agent) -> None:
    """Have what this process writes be readable for the workers' user, as weights must be. State and logs stay private.

    Every process of cortex begins with the umask 077; where workers run as the agent's own user, that is right.
    """
    if not agent.worker_user:
        return
    for folder in (agent.state_dir, agent.log_dir):
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    os.umask(0o022)


def worker_user(name: str) -> WorkerUser | None:
    """Look a user up; none for no name. Raises SettingsError."""
    if not name:
        return None
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        raise SettingsError("[agent] worker_user: needs an agent that is root, and setpriv (util-linux)")
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise SettingsError(f"[agent] worker_user: this host has no user {name!r}") from None
    if found.pw_uid == 0:
        raise SettingsError("[agent] worker_user: is root, which the agent is already")
    return WorkerUser(name=name, uid=found.pw_uid, gid=found.pw_gid, home=found.pw_dir, setpriv=setpriv)
