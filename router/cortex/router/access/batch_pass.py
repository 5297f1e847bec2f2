"""Passes: credentials with which a batch worker acts for a key whose secret it does not have.

A pass contains the key's id and an expiry, and is authenticated with the fleet token, which only routers and their
batch workers have. The router looks the key up at each request, so its current rights, limits and functions apply, and
a pass for a revoked or expired key is refused. A pass allows inference only, at low priority, for `PASS_S`. One is made
for each line; neither passes nor keys are stored.
"""

from collections.abc import Iterable

from cortex.platform.keys import batch_seal, same

PREFIX = "cortex-batch."
PASS_S = 60
"""Lifetime of a pass."""


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
