"""The audit record: what operators did. The decisions that followed are in `decisions.py`. Pure.

An entry has no text of a prompt, no search text and no secret.
"""

from msgspec import Struct


class AuditRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One action of an operator."""

    id: str
    """Unique: an entry that was written twice is shown once."""
    at: float
    """When it began, by the router's clock."""
    by: str
    """The id of the API key, `local` (the user who runs `cortex up`), `anonymous`, or `record` (`cortex key --record`,
    which uses no router)."""
    name: str = ""
    """The key's name at that time."""
    session: bool = False
    """Whether a browser's session on the status page was used."""
    address: str = ""
    """The client's address; of `record`, the user and machine."""
    what: str
    """Noun and verb, such as `function warm`, `key revoke` or `log read`."""
    target: str = ""
    """The function, host, key, request or download."""
    detail: dict[str, str] = {}
    """Options of the action."""
    status: int = 0
    """The HTTP status of the answer; 0: the client disconnected, or the router ended first."""
    took_s: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the action was carried out."""
        return 200 <= self.status < 400
