"""Count the bytes that a router worker holds of live requests, in total and per key, within limits. Pure."""

from collections import Counter

from cortex.router.errors import KeyHoldsTooMuch, RouterHoldsTooMuch


class Holdings:
    """Bytes in one place: in memory, or on the disk."""

    def __init__(self, of_key: int, of_process: int, where: str = "") -> None:
        """`where` names the place in errors: " on the disk"."""
        self._most_of_key, self._most, self._where = of_key, of_process, where
        self._held = 0
        self._of_key: Counter[str] = Counter()

    def count(self, key: str, more: int) -> None:
        """Count bytes of a key's request. Raises KeyHoldsTooMuch or RouterHoldsTooMuch."""
        if self._of_key[key] + more > self._most_of_key:
            raise KeyHoldsTooMuch(self._most_of_key, self._where)
        if self._held + more > self._most:
            raise RouterHoldsTooMuch(self._most, self._where)
        self._held += more
        self._of_key[key] += more

    def uncount(self, key: str, fewer: int) -> None:
        """Stop counting bytes of a key's request."""
        self._held -= fewer
        self._of_key[key] -= fewer
        if self._of_key[key] <= 0:
            del self._of_key[key]
