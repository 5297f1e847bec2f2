"""Names of functions and aliases: which are valid, which valid name a wrong one resembles, and several as text."""

import difflib
import hashlib
import heapq
import re
from collections.abc import Collection, Iterable, Sequence

LONGEST = 200
"""Characters in an id or alias. HuggingFace allows 96 + 1 + 96; the limit keeps the search for similar names cheap."""

MOST_COMPARED = 64
"""Candidates that are compared in full, which takes up to 0.1 ms each while the event loop waits."""
_MOST_PAIRS = 16

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def fault_in(name: str) -> str | None:
    """Return what is wrong with an id or alias, or None. Ids reach headers, logs, metrics and the paths of URLs, which
    clients and servers shorten where a segment is empty or consists of dots."""
    if not name:
        return "is empty"
    if len(name) > LONGEST:
        return f"is longer than {LONGEST} characters"
    if _UNPRINTABLE.search(name):
        return "has a control character in it"
    if name != name.strip():
        return "begins or ends with a space"
    segments = name.split("/")
    if dots := next((s for s in segments if s in (".", "..")), None):
        return f"has '{dots}' as a path segment"
    if "" in segments:
        return "begins or ends with '/', or has '//' in it; a path of weights belongs into `source`"
    return None


def slug(name: str) -> str:
    """Return a safe path segment for any name. Different names get different segments."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80]
    if safe and safe == name:
        return safe
    return f"{safe or 'function'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def join_names(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def nearest(name: str, candidates: Iterable[str], *, most: int = 3, cutoff: float = 0.55) -> list[str]:
    """Return the candidates most similar to `name`, best first; none when nothing is close."""
    if len(name) > LONGEST:
        return []
    folded = {c.casefold(): c for c in candidates}
    matches = _similar(name.casefold(), folded, most, cutoff)
    if not matches:  # people omit the organisation: "qwen3-8b" for "Qwen/Qwen3-8B"
        tails = {c.rpartition("/")[2]: c for c in folded}
        matches = [tails[t] for t in _similar(name.casefold().rpartition("/")[2], tails, most, cutoff=0.7)]
    return [folded[m] for m in matches]


def _similar(name: str, candidates: Collection[str], most: int, cutoff: float) -> list[str]:
    if len(candidates) > MOST_COMPARED:
        candidates = _alike(name, candidates)
    return difflib.get_close_matches(name, candidates, n=most, cutoff=cutoff)


def _alike(name: str, candidates: Iterable[str]) -> list[str]:
    """Return the `MOST_COMPARED` candidates that have most of the name's pairs of characters, for their length."""
    step = len(name) // _MOST_PAIRS + 1
    pairs = {name[n : n + 2] for n in range(0, max(1, len(name) - 1), step)}
    return heapq.nlargest(
        MOST_COMPARED, candidates, key=lambda c: sum(map(c.__contains__, pairs)) / (len(name) + len(c))
    )


def did_you_mean(name: str, candidates: Iterable[str], *, cutoff: float = 0.55) -> str:
    """Return `"; did you mean 'x'?"`, or "" when nothing is close.

    `cutoff` is difflib's: 0 always returns the nearest candidate, for short lists such as keys.
    """
    best = nearest(name, candidates, most=1, cutoff=cutoff)
    return f"; did you mean '{best[0]}'?" if best else ""
