"""Keys between processes: a router has the fleet token, a host only what is derived from it for that host.

    fleet token ─┬─ fleet mark: the fleet that a record in Redis belongs to
                 ├─ batch seal, by a key's id and a time: what a batch worker sends for that key
                 └─ host token, by the host's name ─┬─ agent token, by the agent's address: what routers send
                                                    ├─ neighbour token, by the agent's address: what its fleet's other
                                                    │  agents send for what it offers
                                                    ├─ seal, by another host's name: what proves to that host that
                                                    │  something comes from this one
                                                    ├─ worker key, by the instance's id: the worker's API key
                                                    └─ context key, by a saved conversation's id: what another
                                                       agent sends to fetch that one

Each step is an HMAC-SHA256, which cannot be reversed. With its host's token an agent authenticates routers and its
neighbours, derives the keys of its own workers and recognizes its fleet's record; it can do none of this for another
host or as a router. It gets the neighbour tokens of other hosts from a router.
A router sends neither the fleet token nor a host token. The agent token that it sends to an address forged into the
record opens no agent, and for an instance that another host's record lists it derives a key that no worker has.

Only the token files are stored. An agent that adopts a worker derives its key again. A worker that took over a stale
port answers 401 instead of serving another model.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from cortex.platform import text_files
from cortex.platform.settings import Settings, SettingsError

TOKEN_BYTES = 32
LOOK_S = 1.0
HOST_LINE = "cortex-host"
"""What a line with a host's token begins with."""
T = TypeVar("T")


# Derivations.


def fleet_mark(token: str) -> str:
    """Return the mark that the fleet with this token leaves in the record."""
    return _derive(token, "fleet")


def host_token(token: str, host: str) -> str:
    """Return the token of one host of the fleet that has this token."""
    return _derive(token, f"host:{host}")


def agent_token(own: str, address: str) -> str:
    """Return the bearer token for the agent at an address, from its host's token."""
    return _derive(own, f"agent:{address}")


def neighbour_token(own: str, address: str) -> str:
    """Return the bearer token for what the agent at an address offers to other agents, from its host's token."""
    return _derive(own, f"neighbour:{address}")


def neighbour_seal(own: str, other: str) -> str:
    """Return the secret with which a host proves to another that something comes from it, from its host's token."""
    return _derive(own, f"seal:{other}")


def proof(seal: str, text: str) -> str:
    """Return the authentication code of a text under a seal, which is never sent itself."""
    return _derive(seal, text)


def worker_key(own: str, instance: str) -> str:
    """Return the API key of one instance, from its host's token."""
    return _derive(own, f"worker:{instance}")


def context_key(own: str, context: str) -> str:
    """Return the bearer token that fetches one saved context, from the token of the host that has it."""
    return _derive(own, f"context:{context}")


def cache_salt(token: str, owner: str) -> str:
    """Return the salt for an owner of cached prompts. It reveals neither the token nor the owner."""
    return _derive(token, f"cache:{owner}")


def batch_seal(token: str, claim: str) -> str:
    """Return the authentication code of a claim with which a batch worker acts for a key."""
    return _derive(token, f"batch:{claim}")


def _derive(secret: str, purpose: str) -> str:
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def same(secret: str, expected: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(secret.encode(), expected.encode())


class HostSecrets(Struct, frozen=True):
    """What a host holds of one fleet token."""

    host: str
    mark: str
    """The fleet's mark. It also tells the fleet token itself from any other bearer token."""
    token: str

    @classmethod
    def of_fleet(cls, token: str, host: str) -> "HostSecrets":
        """Derive a host's secrets from a fleet token."""
        return cls(host, fleet_mark(token), host_token(token, host))

    def line(self) -> str:
        """Return these secrets as a line of a host's token file."""
        return f"{HOST_LINE}:{self.host}:{self.mark}:{self.token}"


_LINE = re.compile(rf"{HOST_LINE}:(?P<host>.+):(?P<mark>[0-9a-f]{{64}}):(?P<token>[0-9a-f]{{64}})")


def host_file(tokens: tuple[str, ...], host: str) -> str:
    """Return the text of a host's token file, for the lines of the fleet's."""
    return "".join(f"{HostSecrets.of_fleet(token, host).line()}\n" for token in tokens)


# Token files.


class _TokenFile(Generic[T]):
    """The entries of a token file, one per line: the first is used, and all are accepted.

    Changes of the file take effect within LOOK_S, so a token is replaced without a restart: add the new one as a
    second line everywhere, then make it the first everywhere, and remove the old one when no worker started under it
    is left.
    """

    def __init__(self, path: Path, read: Callable[[Path], tuple[T, ...]]) -> None:
        """Raises SettingsError."""
        self._path, self._read, self._read_at = path, read, time.monotonic()
        self._version = (0, 0, 0)
        with contextlib.suppress(OSError):  # `read` reports it
            self._version = _version(path)
        self._entries = read(path)

    def entries(self) -> tuple[T, ...]:
        """Return all entries, the one in use first."""
        if time.monotonic() - self._read_at > LOOK_S:
            self._read_at = time.monotonic()
            with contextlib.suppress(OSError, SettingsError):  # half written or missing: keep the old tokens
                version = _version(self._path)
                if version != self._version:
                    self._entries = self._read(self._path)
                    self._version = version
        return self._entries


class FleetToken:
    """The fleet token, for routers."""

    def __init__(self, path: Path) -> None:
        """Create the file if it is missing. Raises SettingsError."""
        fleet_token(path)
        self._file = _TokenFile(path, fleet_tokens)

    @property
    def current(self) -> str:
        """The token to use."""
        return self._file.entries()[0]

    @property
    def all(self) -> tuple[str, ...]:
        """Every token, the one to use first."""
        return self._file.entries()

    def for_agent(self, host: str, address: str) -> str:
        """Return the bearer token to send to the agent of a host at this address."""
        return agent_token(host_token(self.current, host), address)

    def for_neighbours(self, host: str, address: str) -> str:
        """Return the bearer token that other agents send to the agent of a host at this address."""
        return neighbour_token(host_token(self.current, host), address)

    def seal_between(self, host: str, other: str) -> str:
        """Return the seal with which a host proves something to another."""
        return neighbour_seal(host_token(self.current, host), other)

    def for_context(self, host: str, context: str) -> str:
        """Return the bearer token that fetches one saved context from a host."""
        return context_key(host_token(self.current, host), context)

    def worker_keys(self, hosts: Iterable[str], instance: str) -> list[str]:
        """Return the keys that an instance may have under these names of its host: for each that of the current token,
        then those of the others."""
        return [worker_key(host_token(token, host), instance) for host in hosts for token in self._file.entries()]

    def fleet_marks(self) -> list[str]:
        """Return the marks of all tokens, the current one's first."""
        return [fleet_mark(token) for token in self._file.entries()]


class HostToken:
    """A host's token, for its agent and its job worker: from a file of its own, or derived from the fleet's."""

    def __init__(self, file: _TokenFile[HostSecrets], fleet_file: Path | None = None) -> None:
        self._file, self._fleet_file = file, fleet_file
        self._former: dict[str, HostToken] = {}

    @classmethod
    def own(cls, path: Path, host: str) -> "HostToken":
        """Return the token in a host's own file. Raises SettingsError."""
        return cls(_TokenFile(path, partial(host_secrets, host=host)))

    @classmethod
    def of_fleet(cls, path: Path, host: str) -> "HostToken":
        """Derive a host's token from the fleet's file, which is created if it is missing. Raises SettingsError."""
        fleet_token(path)
        file = _TokenFile(path, lambda p: tuple(HostSecrets.of_fleet(token, host) for token in fleet_tokens(p)))
        return cls(file, path)

    @classmethod
    def of(cls, settings: Settings) -> "HostToken":
        """Return the token of the host that has these settings. Raises SettingsError."""
        if own := settings.agent.token_file:
            return cls.own(Path(own).expanduser(), settings.host_name)
        return cls.of_fleet(Path(settings.token_file).expanduser(), settings.host_name)

    def accept_former(self, host: str) -> None:
        """Derive keys of workers that were started under this earlier name of the host too. With a file of the host's
        own, which knows one name, it does nothing."""
        if self._fleet_file is not None and host not in self._former:
            self._former[host] = HostToken.of_fleet(self._fleet_file, host)

    def opens(self, bearer: str, address: str) -> bool:
        """Return whether a bearer token is valid for the agent at this address. Compares in constant time.

        The fleet token itself is valid too, since every other one is derived from it.
        """
        mark = fleet_mark(bearer)
        return any(
            [same(mark, entry.mark) | same(bearer, agent_token(entry.token, address)) for entry in self._file.entries()]
        )

    def opens_offers(self, bearer: str, address: str) -> bool:
        """Return whether a bearer token is another agent's for what the agent at this address offers. Compares in
        constant time."""
        return any([same(bearer, neighbour_token(entry.token, address)) for entry in self._file.entries()])

    def proofs(self, other: str, text: str) -> tuple[str, ...]:
        """Return this host's proofs of a text for another host, one for each token."""
        return tuple(proof(neighbour_seal(entry.token, other), text) for entry in self._file.entries())

    def opens_context(self, bearer: str, context: str) -> bool:
        """Return whether a bearer token fetches this saved context. Compares in constant time."""
        return any([same(bearer, context_key(entry.token, context)) for entry in self._file.entries()])

    def worker_key(self, instance: str) -> str:
        """Return the key that an instance which starts now gets."""
        return worker_key(self._file.entries()[0].token, instance)

    def worker_keys(self, instance: str) -> list[str]:
        """Return the keys that an instance may have: that of the current token, and those of the others."""
        own = [worker_key(entry.token, instance) for entry in self._file.entries()]
        return [*own, *(key for former in self._former.values() for key in former.worker_keys(instance))]

    def fleet_marks(self) -> list[str]:
        """Return the marks of all tokens, the current one's first."""
        return [entry.mark for entry in self._file.entries()]


def fleet_token(path: Path) -> str:
    """Return the token in a file. Creates the file (mode 0600) if it is missing. Raises SettingsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Link a finished file, so that another process that starts now reads a whole token, never an empty file.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".token-") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return fleet_tokens(path)[0]


def fleet_tokens(path: Path) -> tuple[str, ...]:
    """Return the lines of the fleet's token file. Raises SettingsError."""
    tokens = _lines(path)
    if not tokens:  # keys derived from an empty token could be guessed
        raise SettingsError(f"{path}: is empty; remove it, and a new token is made")
    if any(line.startswith(f"{HOST_LINE}:") for line in tokens):
        raise SettingsError(
            f"{path}: is the token of a host, not the fleet token: a router needs the fleet token, and an agent or a "
            "job worker takes this file as `[agent] token_file`"
        )
    return tokens


def host_secrets(path: Path, host: str) -> tuple[HostSecrets, ...]:
    """Return the lines of a host's token file. Raises SettingsError unless they are that host's."""
    how = f"`cortex host token {host}` on a machine with the fleet token makes one"
    try:
        lines = _lines(path)
    except SettingsError as error:
        raise SettingsError(f"{error}; {how}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SettingsError(f"{path}: line {number} is not the token of a host; {how}")
        if match["host"] != host:
            raise SettingsError(f"{path}: is the token of host '{match['host']}', and this is host '{host}'; {how}")
        entries.append(HostSecrets(**match.groupdict()))
    if not entries:
        raise SettingsError(f"{path}: is empty; {how}")
    return tuple(entries)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = text_files.read(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{path}: cannot be read: {why}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _version(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
