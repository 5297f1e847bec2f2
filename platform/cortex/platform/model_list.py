"""The list of models a worker gives at `/v1/models`: which it serves, and what it says of each. Pure."""

import json
from typing import Any

from cortex.functions.names import LONGEST
from cortex.platform import untrusted

MOST_MODELS = 1000


def read(body: bytes) -> dict[str, dict[str, Any]]:
    """Return the entries of a list by their cleaned ids, the first MOST_MODELS of them; what is no entry is left out.

    Raises ValueError for a body that is not JSON.
    """
    try:
        # Not msgspec, which refuses half a character and NaN: an odd list still tells what is served.
        answer: Any = json.loads(body)
    except RecursionError:
        raise ValueError("the list of models is nested too deeply") from None
    listed = answer.get("data") if isinstance(answer, dict) else None
    entries = [e for e in listed[:MOST_MODELS] if isinstance(e, dict)] if isinstance(listed, list) else []
    # One character more than an id may have: a longer name is never cut to a function's.
    return {untrusted.name(entry.get("id"), LONGEST + 1): entry for entry in entries}
