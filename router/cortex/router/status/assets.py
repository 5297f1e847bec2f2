"""The page's static files: CSS and scripts from the package, under names with a hash of their content."""

import hashlib
from importlib.resources import files

from msgspec import Struct

PREFIX = "status/assets/"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Asset(Struct, frozen=True):
    """One file."""

    body: bytes
    media_type: str


def url(name: str) -> str:
    """Return a file's URL, relative to the page: `status.css` → `status/assets/status.1a2b3c4d5e.css`."""
    return PREFIX + _HASHED[name]


def asset(hashed: str) -> Asset | None:
    """Return a file by its hashed name."""
    return _ASSETS.get(hashed)


def _read() -> tuple[dict[str, str], dict[str, Asset]]:
    hashed, assets = {}, {}
    for file in files("cortex.router.status").joinpath("static").iterdir():
        stem, dot, ending = file.name.rpartition(".")
        body = file.read_bytes()
        name = f"{stem}.{hashlib.sha256(body).hexdigest()[:10]}.{ending}"
        hashed[file.name] = name
        assets[name] = Asset(body, _TYPES[dot + ending])
    return hashed, assets


_HASHED, _ASSETS = _read()
