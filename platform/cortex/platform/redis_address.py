"""An address that names Sentinels and a master: `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST,HOST/MASTER/DB`. Pure.

`rediss+sentinel://` is the same by TLS, to the Sentinels and to Redis alike. An error names the part of the address
that is wrong and repeats nothing of it: there may be a password in the wrong place.
"""

import re
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
_OPTIONS = ("sentinel_username", "sentinel_password", "ssl_ca_certs", "ssl_check_hostname", "ssl_cert_reqs")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/\s]+)(?::(?P<port>[0-9]+))?")


class BadAddress(ValueError):
    """An address of Redis that is none. `str()` names the part that is wrong."""


class Sentinels(Struct, frozen=True, kw_only=True):
    """What an address says: whom to ask, for which master, and how to come in at both."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int = 0
    tls: bool = False
    username: str = ""
    password: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    ssl: dict[str, str] = {}
    """Options of TLS, by their names in redis-py."""


def is_sentinel(url: str) -> bool:
    """Whether an address names Sentinels."""
    return url.partition("://")[0] in SCHEMES


def sentinels(url: str) -> Sentinels:
    """Read an address. Raises BadAddress."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise BadAddress(f"it begins with neither {SCHEMES[0]}:// nor {SCHEMES[1]}://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise BadAddress("its user or password has a / in it, which is written %2F")
    user, _, hosts = authority.rpartition("@")
    username, _, password = user.partition(":")
    master, _, db = path.partition("/")
    if not master:
        raise BadAddress("the name of the master is missing: it comes after the Sentinels and a /")
    if db and not (db.isascii() and db.isdecimal() and len(db) <= 5):
        raise BadAddress("the database after the master's name is not a number")
    options = _options(query)
    return Sentinels(
        hosts=tuple(_host(nth, one) for nth, one in enumerate(hosts.split(","), 1)),
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
        raise BadAddress(f"Sentinel number {nth} is not like HOST or HOST:PORT")
    port = int(match["port"] or SENTINEL_PORT)
    if not 0 < port < 65536:
        raise BadAddress(f"the port of Sentinel number {nth} is not from 1 to 65535")
    return unquote(match["host"]).strip("[]"), port


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise BadAddress(f"an option after the ? is none of {', '.join(_OPTIONS)}")
        options[name] = value
    return options
