"""Names people write: what a name may look like, and which known name they probably meant."""

import difflib
import hashlib
import re
from collections.abc import Iterable

LONGEST = 200
"""Characters in an id or alias. HuggingFace allows 96 + 1 + 96; a bound keeps look-alike search cheap."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def fault_in(name: str) -> str | None:
    """Say what is wrong with an id or alias, or None. Ids reach headers, logs and metrics: keep them tame."""
    if not name:
        return "is empty"
    if len(name) > LONGEST:
        return f"is longer than {LONGEST} characters"
    if _UNPRINTABLE.search(name):
        return "has a control character in it"
    if name != name.strip():
        return "begins or ends with a space"
    if ".." in name.split("/"):
        return "has '..' as a path segment"
    return None


def slug(name: str) -> str:
    """Return a name for one path segment, safe whatever `name` holds, and another one for every other name."""
    tame = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80]
    if tame and tame == name:
        return tame
    return f"{tame or 'function'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def nearest(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.55) -> list[str]:
    """Return the known names most like `name`, best first; none when nothing is close."""
    if len(name) > LONGEST:
        return []
    folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=most, cutoff=cutoff)
    if not found:  # people leave the organisation out: "qwen3-8b" for "Qwen/Qwen3-8B"
        tails = {k.rpartition("/")[2]: k for k in folded}
        tail = name.casefold().rpartition("/")[2]
        found = [tails[t] for t in difflib.get_close_matches(tail, tails, n=most, cutoff=0.7)]
    return [folded[f] for f in found]


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.55) -> str:
    """Return `"; did you mean 'x'?"`, or an empty string when nothing is close.

    `cutoff` is difflib's: 0 takes the nearest of the known however far, for short lists such as keys.
    """
    best = nearest(name, known, most=1, cutoff=cutoff)
    return f"; did you mean '{best[0]}'?" if best else ""
