"""Redis addresses with Sentinels: `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST,HOST/MASTER/DB`. Pure.

`rediss+sentinel://` uses TLS for the Sentinels and for Redis. An error names the wrong part of the address but does
not quote it, since a misplaced password may be in it.
"""

import re
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
_OPTIONS = ("sentinel_username", "sentinel_password", "ssl_ca_certs", "ssl_check_hostname", "ssl_cert_reqs")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/\s]+)(?::(?P<port>[0-9]+))?")


class BadAddress(ValueError):
    """An invalid Redis address. The message names the wrong part."""


class Sentinels(Struct, frozen=True, kw_only=True):
    """A parsed address: the Sentinels, the master's name, and the credentials for both."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int = 0
    tls: bool = False
    username: str = ""
    password: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    ssl: dict[str, str] = {}
    """TLS options, by their names in redis-py."""


def is_sentinel(url: str) -> bool:
    """Return whether an address names Sentinels."""
    return url.partition("://")[0] in SCHEMES


def sentinels(url: str) -> Sentinels:
    """Parse an address. Raises BadAddress."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise BadAddress(f"it begins with neither {SCHEMES[0]}:// nor {SCHEMES[1]}://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise BadAddress("its user or password contains a /: write it as %2F")
    user, _, hosts = authority.rpartition("@")
    username, _, password = user.partition(":")
    master, _, db = path.partition("/")
    if not master:
        raise BadAddress("the master's name is missing: it follows the Sentinels, after a /")
    if db and not (db.isascii() and db.isdecimal() and len(db) <= 5):
        raise BadAddress("the database after the master's name is not a number")
    options = _options(query)
    return Sentinels(
        hosts=tuple(_host(nth, host) for nth, host in enumerate(hosts.split(","), 1)),
        master=unquote(master),
        db=int(db or 0),
        tls=scheme == SCHEMES[1],
        username=unquote(username),
        password=unquote(password),
        sentinel_username=options.pop("sentinel_username", ""),
        sentinel_password=options.pop("sentinel_password", ""),
        ssl=options,
    )


def _host(nth: int, text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise BadAddress(f"Sentinel number {nth} does not have the form HOST or HOST:PORT")
    port = int(match["port"] or SENTINEL_PORT)
    if not 0 < port < 65536:
        raise BadAddress(f"the port of Sentinel number {nth} is not from 1 to 65535")
    return unquote(match["host"]).strip("[]"), port


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise BadAddress(f"unknown option after the ?: the options are {', '.join(_OPTIONS)}")
        options[name] = value
    return options
