"""HTTP to one server, with the standard library's client: the import of httpx takes as long as a short command."""

import select
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead, InvalidURL
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ssl import SSLContext

ERRORS = (OSError, HTTPException)
"""What a request raises, and the reading of its answer, if no server answers or the answer ends early."""


class Connection:
    """A connection to the server of a URL, kept open between requests. No proxies, no redirects."""

    def __init__(self, url: str, headers: Mapping[str, str], trusted: "SSLContext | None" = None) -> None:
        """`headers` are sent with every request; `trusted` are the authorities of an https URL."""
        self._url, self._headers, self._trusted = url, headers, trusted
        self._idle: HTTPConnection | None = None

    @contextmanager
    def answer(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        *,
        timeout_s: float,
        endless: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        """Send a request and yield its answer, to be read within the context. Raises ERRORS.

        A body in pieces needs its length among the `headers`.

        `timeout_s` is the maximum time without a byte; an `endless` answer has none once the server is connected.
        """
        connection = self._reusable() or self._connect(timeout_s)
        whole = False
        try:
            connection.sock.settimeout(None if endless else timeout_s)
            connection.request(method, urlsplit(self._url).path + path, body, {**self._headers, **(headers or {})})
            with connection.getresponse() as response:
                yield response
                whole = response.isclosed() and not response.will_close
        finally:
            if whole:
                self._idle = connection
            else:
                connection.close()

    def _connect(self, timeout_s: float) -> HTTPConnection:
        try:
            parts = urlsplit(self._url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidURL(str(error)) from None
        if not host or parts.scheme not in ("http", "https"):
            raise InvalidURL("the URL is not like http://HOST:PORT")
        if parts.scheme == "https":
            connection: HTTPConnection = HTTPSConnection(host, port, timeout=timeout_s, context=self._trusted)
        else:
            connection = HTTPConnection(host, port, timeout=timeout_s)
        connection.connect()
        return connection

    def _reusable(self) -> HTTPConnection | None:
        """Return the connection of the last request, unless the server has closed it."""
        idle, self._idle = self._idle, None
        if idle is None or select.select([idle.sock], [], [], 0)[0]:
            return None
        return idle


def lines_of(answer: HTTPResponse) -> Iterator[str]:
    """Yield the lines of an answer as they arrive, without their ends. Raises ERRORS."""
    for line in answer:
        yield from line.decode(errors="replace").splitlines()
    if answer.length or (answer.chunked and answer.chunk_left is not None):  # which reading by lines does not report
        raise IncompleteRead(b"", answer.length)
