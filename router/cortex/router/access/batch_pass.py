"""Passes: how a batch worker acts for a key that it does not have.

A pass names a key's id and when it ends, sealed with the fleet token, which only routers and their batch workers have.
The router that gets one looks the key up as it is now: rights, limits and functions are the key's, and a revoked or
expired key has none. A pass allows inference only, at low priority, and lasts `PASS_S`; it is made for each line, and
neither it nor the key is stored.
"""

from collections.abc import Iterable

from cortex.platform.keys import batch_seal, same

PREFIX = "cortex-batch."
PASS_S = 60


def make(token: str, key: str, now: float) -> str:
    """Return a pass for a key, by its id."""
    claim = f"{key}.{int(now) + PASS_S}"
    return f"{PREFIX}{claim}.{batch_seal(token, claim)}"


def key_of(secret: str, tokens: Iterable[str], now: float) -> str | None:
    """Return the id of the key that a pass names; None if the pass is not valid."""
    claim, _, seal = secret.removeprefix(PREFIX).rpartition(".")
    key, _, until = claim.rpartition(".")
    if not any([same(seal, batch_seal(token, claim)) for token in tokens]):
        return None
    return key if until.isdecimal() and now <= int(until) <= now + 2 * PASS_S else None
