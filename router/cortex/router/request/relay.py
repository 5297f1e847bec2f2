"""A worker's stream on its way to the client: each piece is translated and written in the loop's turn it arrives in.

Nothing is queued between the two connections, and no task runs per piece: a client that does not read stops the reading
from the worker. What arrived together is written together.
"""

import time
from collections.abc import Callable, Sequence

from cortex.router.dialects.core.errors import WorkerRefusal
from cortex.router.dialects.core.stop_strings import StopCut
from cortex.router.dialects.core.stream import Stream
from cortex.router.dialects.core.worker_errors import engine_died, first_error
from cortex.router.http_answer import Client
from cortex.router.request.prompt_cache import HiddenCounts
from cortex.router.request.upstream import EngineFailed
from cortex.router.request_record import RequestRecord


class Relay:
    """Takes one worker's stream. `start` sends the head of the answer; it is called before each piece."""

    def __init__(
        self,
        client: Client,
        stream: Stream,
        request_record: RequestRecord,
        start: Callable[[], None],
        *,
        hidden: HiddenCounts | None = None,
        cuts: Sequence[str] = (),
    ) -> None:
        """`hidden` removes cached token counts, `cuts` are the stop strings that cortex finds itself."""
        self._client, self._stream, self._record, self._start = client, stream, request_record, start
        self._hidden, self._cut = hidden, StopCut(cuts) if cuts else None
        self._is_changed = hidden is not None or bool(cuts)

    @property
    def over(self) -> bool:
        """Whether the answer is complete, or has failed."""
        return self._stream.over

    @property
    def has_ended(self) -> bool:
        """Whether the worker has said that its answer is complete."""
        return self._stream.over and self._stream.fault is None and self._cut is None

    def when_writable(self, resume: Callable[[], None] | None) -> None:
        """Call back when the client has read."""
        self._client.on_writable = resume

    async def drain(self) -> None:
        """Wait until the client has read."""
        await self._client.drain()

    def take(self, data: bytes) -> bool:
        """Pass on a piece of the worker's body. False if the client has to read first.

        Raises EngineFailed or WorkerRefusal when the first piece is an error: nothing has been sent yet.
        """
        if self._hidden is not None:
            data = self._hidden.feed(data)
        if self._cut is not None:
            data = self._cut.feed(data)
        if data:
            self._pass(data)
        return not self._client.is_full

    def take_chunk(self, chunk: bytes) -> bool:
        """Pass on one whole chunk of HTTP, framing included, that differs from an earlier one in its text only. False:
        `take` has to."""
        feed, write = self._stream.feed_chunk, self._client.write_chunk
        if feed is None or write is None or self._is_changed:
            return False
        output = feed(chunk)
        if not output:
            return False
        self._record.piece(time.monotonic())
        write(output)
        return True

    def close(self) -> None:
        """End the stream: the worker's body has ended. Raises what `take` does."""
        if not self.over:
            rest = b"" if self._hidden is None else self._hidden.close()
            if self._cut is not None:
                rest = self._cut.feed(rest) + self._cut.close()
            if rest:
                self._pass(rest)
        self.say(self._stream.close())

    def say(self, output: bytes) -> None:
        """Send what the dialect says. Raises WorkerRefusal for a fault before anything was sent: it gets its status."""
        if self._stream.fault is not None and not self._record.status:
            raise WorkerRefusal(self._stream.fault)
        if output:
            self._start()
            self._client.write(output)

    def _pass(self, data: bytes) -> None:
        record, began = self._record, time.monotonic()
        if not record.pieces and (fault := first_error(data)) and engine_died(fault.message):
            raise EngineFailed("its engine has failed")
        record.piece(began)
        output = self._stream.feed(data)
        record.translate_s += time.monotonic() - began
        self.say(output)
