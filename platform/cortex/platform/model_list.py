"""A worker's answer to `/v1/models`: the models it serves, and what it reports about each. Pure."""

import json
from typing import Any

from cortex.functions.names import LONGEST
from cortex.platform import untrusted

MOST_MODELS = 1000


def read(body: bytes) -> dict[str, dict[str, Any]]:
    """Return the first MOST_MODELS entries by their cleaned ids, without invalid entries.

    Raises ValueError for a body that is not JSON.
    """
    try:
        # Not msgspec, which rejects lone surrogates and NaN: even an odd list shows what is served.
        answer: Any = json.loads(body)
    except RecursionError:
        raise ValueError("the list of models is nested too deeply") from None
    data = answer.get("data") if isinstance(answer, dict) else None
    entries = [e for e in data[:MOST_MODELS] if isinstance(e, dict)] if isinstance(data, list) else []
    # One character more than an id may have, so that no longer name is cut to a function's id.
    return {untrusted.name(entry.get("id"), LONGEST + 1): entry for entry in entries}
