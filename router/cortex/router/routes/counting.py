"""Count a prompt's tokens with its worker's tokenizer. A cold function is not started for that."""

import time

from cortex.functions.servers import server_of
from cortex.platform.api_keys import ANONYMOUS
from cortex.router.access.rate_limits import Share
from cortex.router.activation.load_balancing import choose
from cortex.router.dialects.core import limits
from cortex.router.dialects.messages import request as messages
from cortex.router.http_answer import Answering
from cortex.router.request.incoming import Incoming
from cortex.router.request.token_count import Count, TokenCount
from cortex.router.request_record import COUNT_TOKENS, RequestRecord
from cortex.router.routes.reader import Reading


async def count_tokens(reading: Reading, request: Incoming, body: bytes, share: Share) -> Answering:
    """Return what answers a request of Anthropic's dialect with the number of its tokens."""
    started, who, exchanges = time.monotonic(), request.caller, reading.entrance.exchanges
    name = (await reading.peek("messages", body)).model
    target = exchanges.catalogue.resolve_for(name, who)
    function = target.function
    read_s = time.monotonic() - started
    request_record = RequestRecord(request.id, function.id, name, COUNT_TOKENS, streams=False, read_s=read_s)
    request_record.key = who.id
    request_record.who = who.name if who.id != ANONYMOUS else ""

    async def count() -> Count:
        content = await reading.images.inline(body) if function.remote_images else body
        traits = reading.traits(target, "messages")
        parsed = await reading.entrance.intake.work(len(content), messages.read_count, content, traits)
        ready = choose(reading.ready(target), reading.view.elsewhere)
        if ready is None or server_of(function, ready.server).counts == "no":
            return Count(limits.estimate(parsed.upstream.request), is_estimate=True)
        placed = reading.view.place_of(ready.id)
        request_record.forward(ready.id, placed[1] if placed else "")
        with reading.in_flight.track(target.base.id, ready.id, target.share):
            prompt = parsed.count(target.base.name_at_worker)  # an adapter may not be loaded, and counts the same
            return Count(await reading.tokenizer.count(function, ready, prompt), is_estimate=False)

    return share.wrap(TokenCount(exchanges.request_records, function, request_record, count), request_record)
