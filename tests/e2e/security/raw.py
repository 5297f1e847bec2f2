"""Sends raw bytes to a port and returns the answer."""

import contextlib
import re
import socket
from typing import NamedTuple


class RawAnswer(NamedTuple):
    """What a server said until it closed the connection, or fell silent."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of every answer."""
        return [int(matches) for matches in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.raw)]


def say(port: int, data: bytes, *, half_close: bool = False, silence_s: float = 1.0) -> RawAnswer:
    """Send bytes and return what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.settimeout(silence_s)
        raw = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        try:
            while piece := connection.recv(65536):
                raw += piece
        except TimeoutError:
            return RawAnswer(raw, closed=False)
        except ConnectionError:
            pass
        return RawAnswer(raw, closed=True)
