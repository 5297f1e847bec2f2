"""Cross-origin requests (CORS): which pages of other sites may read the answers of the client APIs. Pure.

The protocol is that of the Fetch standard, https://fetch.spec.whatwg.org/#http-cors-protocol. An API key in a header is
no credential in its sense, so `Access-Control-Allow-Credentials` is never sent: no page of another site can use a
session cookie. `/admin` and `/status` answer pages of this router only.
"""

from collections.abc import Collection, Iterable

Headers = Iterable[tuple[bytes, bytes]]

ANY = "*"
PREFLIGHT_S = 7200
"""How long a browser may reuse the answer to a preflight; Chromium allows no more."""
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
    # `*` does not cover Authorization.
    (b"access-control-allow-headers", b"authorization, *"),
    (b"access-control-max-age", b"%d" % PREFLIGHT_S),
]


class CrossOrigin:
    """Decides by `[gateway] cors_origins`."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self.is_on = bool(origins)
        self._is_any = ANY in origins

    def lists(self, origin: str) -> bool:
        """Whether pages of an origin may read answers."""
        return bool(origin) and (self._is_any or origin.encode("latin-1", "replace") in self._origins)

    def headers(self, request: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers to add to the answer to a request with these headers."""
        exposed = (b"access-control-expose-headers", ANY.encode())
        if self._is_any:
            return [(b"access-control-allow-origin", ANY.encode()), exposed]
        vary = (b"vary", b"origin")
        origin = dict(request).get(b"origin")
        return [vary, (b"access-control-allow-origin", origin), exposed] if origin in self._origins else [vary]

    def preflight(self, method: str, request: Headers) -> list[tuple[bytes, bytes]] | None:
        """Return the headers of the answer to a preflight, in addition to `headers`; None for any other request, and
        for an origin that is not listed."""
        values = dict(request)
        asks = method == "OPTIONS" and b"access-control-request-method" in values
        return _PREFLIGHT if asks and self.lists(values.get(b"origin", b"").decode("latin-1")) else None
