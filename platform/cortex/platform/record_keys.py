"""The names of the record's keys in Redis, all below one prefix. Pure.

An index, a set of names, lists the keys that exist once per host, router, function or API key, so the record is read
without a SCAN, however many other keys the database holds.
"""

DEFAULT_PREFIX = "cortex"


class RecordKeys:
    """The names below one prefix. Two fleets can share a Redis with two prefixes."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self.prefix = prefix
        self.hosts, self.routers = f"{prefix}:hosts", f"{prefix}:routers"
        self.overrides, self.api_keys = f"{prefix}:overrides", f"{prefix}:keys"
        self.fleet = f"{prefix}:fleet"
        self.used, self.cordon, self.ledger = f"{prefix}:used", f"{prefix}:cordon", f"{prefix}:ledger"
        self.decisions, self.sweep = f"{prefix}:decisions", f"{prefix}:sweep"
        self.sessions, self.audit = f"{prefix}:sessions", f"{prefix}:audit"
        self.usage_names = f"{prefix}:usage:names"
        self.changed = f"{prefix}:changed"
        """The channel of the bell."""
        self.types = {
            self.hosts: "set",
            self.routers: "set",
            self.overrides: "set",
            self.api_keys: "set",
            self.fleet: "set",
            self.used: "zset",
            self.cordon: "set",
            self.ledger: "hash",
            self.decisions: "stream",
            self.sweep: "string",
            self.sessions: "hash",
            self.audit: "stream",
            self.usage_names: "hash",
        }
        """The type of each key that exists once."""

    def host(self, name: str) -> str:
        """Return the key of a host's record."""
        return f"{self.prefix}:host:{name}"

    def namesake(self, host: str) -> str:
        """Return the key that another machine with the same host name writes."""
        return f"{self.prefix}:namesake:{host}"

    def counts(self, host: str) -> str:
        """Return the key of the counters of a host's agent."""
        return f"{self.prefix}:counts:{host}"

    def router(self, router: str) -> str:
        """Return the key of a router's report."""
        return f"{self.prefix}:router:{router}"

    def override(self, function: str) -> str:
        """Return the key of a function's override."""
        return f"{self.prefix}:override:{function}"

    def api_key(self, digest: str) -> str:
        """Return the key of an API key's record."""
        return f"{self.prefix}:key:{digest}"

    def claim(self, function: str) -> str:
        """Return the key of the claim on a function's next start."""
        return f"{self.prefix}:claim:{function}"

    def question(self, token: str) -> str:
        """Return the key of a question to the peers."""
        return f"{self.prefix}:question:{token}"

    def death(self, token: str) -> str:
        """Return the key of a router's message about a worker's death."""
        return f"{self.prefix}:death:{token}"

    def answers(self, token: str) -> str:
        """Return the key of the peers' answers to a question."""
        return f"{self.prefix}:answers:{token}"

    def quota(self, key: str) -> list[str]:
        """Return the keys of an API key's buckets and tickets, with one hash tag, for one node of a cluster."""
        return [f"{self.prefix}:quota:{{{key}}}", f"{self.prefix}:tickets:{{{key}}}"]

    def responses(self, owner: str) -> list[str]:
        """Return the index of an owner's stored responses and conversations, by expiry, their sizes, and the ids that
        were deleted before they were written."""
        prefix = f"{self.prefix}:responses"
        return [f"{prefix}:{{{owner}}}", f"{prefix}:sizes:{{{owner}}}", f"{prefix}:deleted:{{{owner}}}"]

    def response(self, name: str) -> str:
        """Return the key of a stored response or conversation; the name has its owner and its id."""
        return f"{self.prefix}:response:{name}"

    def response_run(self, name: str) -> str:
        """Return the key of the lease of a response that is made in the background."""
        return f"{self.prefix}:response:run:{name}"

    def usage(self, day: str) -> list[str]:
        """Return the keys of a day's usage, by hour and of the whole day; the day is like 2026-01-31."""
        return [f"{self.prefix}:usage:{kind}:{day}" for kind in ("hours", "day")]

    def usage_batch(self, router: str) -> str:
        """Return the key of the last batch of usage that a router wrote."""
        return f"{self.prefix}:usage:batch:{router}"

    def usage_spent(self, month: str) -> str:
        """Return the key of what keys spent in a month, which is like 2026-01."""
        return f"{self.prefix}:usage:spent:{month}"

    def queue(self, host: str) -> str:
        """Return the name of a host's RQ queue. Prefixes have no hyphen, so two prefixes never share a queue."""
        return f"{self.prefix}-{host}"

    def batch_queue(self, host: str) -> str:
        """Return the name of the RQ queue of the batch worker of a host. No queue of downloads has a colon."""
        return f"{self.prefix}:batches:{host}"
