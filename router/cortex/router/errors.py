"""Every way a request can be refused, as one tree, named for what the caller can do next.

Refusal
├── BadRequest          mend the request
├── NoKey               send an API key that is known
├── NotAllowed          ask for another key: this one is not for that
├── CannotServe         ask another function: this one's server cannot do it
├── FunctionNotFound    ask for a name that is in the catalogue
├── HostNotFound        name a host that is alive
├── InstanceNotFound    name an instance that some host knows
├── RequestNotFound     name a request that is under way, or was lately
├── SharedRequestId     name the key whose request is meant: others use the same id
├── KeyNotFound         name an API key that there is
├── KeyNameTaken        take another name, or rotate the key that has it
├── JobNotFound         name a job that is going on
├── TooManyAnswers      ask for fewer answers in one request than the key's limits hold
├── OverLimits          come back when the key's limits allow it
├── QueueFull           come back after `retry_after`
├── KeyHoldsTooMuch     come back when others of your requests have been answered
├── RouterHoldsTooMuch  come back when others' requests have been answered
├── NotReadyInTime      come back: it was still starting when your time was up
├── NoCapacity          come back: nothing can leave for it now
├── Suspected           come back later: workers died while they served this request
├── StartFailed         a person must look; the reason says at what
├── TooManyListeners    come back, or ask another worker, to follow the events
├── RecordIsAway        come back: Redis does not answer, so nothing new is started
├── UpstreamBroke       the worker broke before its first byte, on every try
├── UpstreamSilent      the worker took longer than the function's request clock allows
├── UpstreamCutShort    the worker broke in the middle of its answer
└── Cancelled           an operator ended it; ask again if you still want it
"""

from collections.abc import Sequence
from math import ceil

from msgspec.structs import replace

from cortex.router.dialects.core.errors import Fault, Kind

SEE_WHY = "; an operator can look up why by the request's id"


class RequestError(Exception):
    """A request that is not served. `fault()` is what its client is told, in whatever dialect.

    `message` is for operators, and is noted of the request; it may name hosts and how a worker ended. `public` is for
    clients that may not see the fleet.
    """

    kind = Kind.INTERNAL
    code: str | None = None

    def __init__(
        self, message: str, *, retry_after: int | None = None, param: str | None = None, public: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.public = message, public or message
        self.retry_after, self.param = retry_after, param

    def fault(self, *, operator: bool = False) -> Fault:
        """Return it as a value that every dialect can say, in the words for an operator or for any client."""
        return Fault(
            kind=self.kind,
            message=self.message if operator else self.public,
            code=self.code,
            param=self.param,
            retry_after_s=self.retry_after,
        )


class BadRequest(RequestError):
    """The body is not what the route takes."""

    kind = Kind.BAD_REQUEST


class NoKey(RequestError):
    """There is no API key in the request, or one that nobody has."""

    kind = Kind.NO_KEY


class NotAllowed(RequestError):
    """The caller is known, and may not do this."""

    kind = Kind.FORBIDDEN


class CannotServe(RequestError):
    """The server behind the function cannot do what was asked."""

    kind = Kind.UNSUPPORTED


class FunctionNotFound(RequestError):
    """The name is neither an id nor an alias of the catalogue."""

    kind = Kind.UNKNOWN_MODEL

    def __init__(self, name: str, near: Sequence[str]) -> None:
        self._hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        self._name = name[:200]
        super().__init__(f"the model {self._name!r} is not in the catalogue{self._hint}", param="model")

    def fault(self, *, operator: bool = False) -> Fault:
        """Clients of Anthropic's dialect look for the words `model: NAME`."""
        return replace(super().fault(operator=operator), anthropic_message=f"model: {self._name}{self._hint}")


class HostNotFound(RequestError):
    """No host of that name is alive."""

    kind, code = Kind.UNKNOWN_PATH, "host_not_found"

    def __init__(self, name: str, near: Sequence[str]) -> None:
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"no host {name[:200]!r} is alive{hint}")


class InstanceNotFound(RequestError):
    """No host knows such an instance, or has kept such a log."""

    kind, code = Kind.UNKNOWN_PATH, "instance_not_found"


class RequestNotFound(RequestError):
    """No router worker knows a request of that id."""

    kind, code = Kind.UNKNOWN_PATH, "request_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"no request {id[:128]!r} is under way, or was lately")


class SharedRequestId(RequestError):
    """Requests of several keys have this id."""

    kind, code = Kind.BAD_REQUEST, "request_id_shared"

    def __init__(self, id: str, owners: Sequence[str]) -> None:
        names = ", ".join(owner or "no key" for owner in owners[:10])
        super().__init__(f"requests of several keys have the id {id[:128]!r} ({names}): name the key", param="key")


class KeyNotFound(RequestError):
    """No API key has that name or id."""

    kind, code = Kind.UNKNOWN_PATH, "key_not_found"


class KeyNameTaken(RequestError):
    """An API key has that name already."""

    kind, code = Kind.BAD_REQUEST, "key_name_taken"


class JobNotFound(RequestError):
    """No job of that id is going on."""

    kind, code = Kind.UNKNOWN_PATH, "job_not_found"

    def __init__(self, name: str, near: Sequence[str]) -> None:
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"no job {name[:200]!r} is going on{hint}")


class QueueFull(RequestError):
    """As many requests as the function's `queue` allows are waiting already."""

    kind = Kind.RATE_LIMITED


class TooManyAnswers(RequestError):
    """One request wants more answers than its key may have requests, in a minute or at a time."""

    kind = Kind.BAD_REQUEST

    def __init__(self, answers: int, most: int) -> None:
        super().__init__(
            f"a request for {answers} answers counts as {answers}, and this key may make {most}", param="n"
        )


class OverLimits(RequestError):
    """The key has used up one of its limits. `headers` tell its client where it stands."""

    kind = Kind.RATE_LIMITED

    def __init__(self, message: str, wait_s: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(message, retry_after=max(1, ceil(wait_s)))
        self.headers = tuple(headers)


class KeyHoldsTooMuch(RequestError):
    """The bodies of a key's requests under way are as large as they may be together."""

    kind = Kind.RATE_LIMITED

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this key's requests under way hold {most >> 20} MiB on this router worker, and no more may be sent until"
            " one of them is answered",
            retry_after=5,
        )


class RouterHoldsTooMuch(RequestError):
    """The bodies of all requests under way are as large as a router worker takes together."""

    kind = Kind.NO_CAPACITY

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the requests under way hold {most >> 20} MiB on this router worker, the most that it takes",
            retry_after=5,
        )


class NotReadyInTime(RequestError):
    """The function's startup clock ran out before an instance was ready."""

    kind = Kind.LOADING


class NoCapacity(RequestError):
    """No host can take it now."""

    kind, code = Kind.NO_CAPACITY, "no_capacity"


class Suspected(RequestError):
    """Workers of the function died again and again with this request aboard, or with others of its key."""

    kind, code = Kind.NO_CAPACITY, "suspected_request"

    def __init__(self, function: str, *, retry_after: int) -> None:
        super().__init__(
            f"workers of '{function}' died or hung while they served this request or others of its API key, so it is"
            f" refused for {retry_after} s: change the request, or show its id to the operator (`cortex why ID`)",
            retry_after=retry_after,
        )


class StartFailed(RequestError):
    """Its start failed, or keeps failing."""

    kind, code = Kind.CRASH_LOOPING, "start_failed"


class TooManyListeners(RequestError):
    """As many clients as a worker allows follow its events already."""

    kind = Kind.RATE_LIMITED


class RecordIsAway(RequestError):
    """Redis does not answer and no instance is warm."""

    kind, code = Kind.NO_CAPACITY, "record_away"


class UpstreamBroke(RequestError):
    """The worker could not be reached or broke before it answered; replays did not help.

    `answer` is the worker's own text about the request, for its client alone: no log, no list and no record has it.
    """

    kind = Kind.WORKER_ERROR

    def __init__(self, message: str, *, public: str = "", answer: str = "") -> None:
        super().__init__(message, public=public)
        self._answer = answer

    def fault(self, *, operator: bool = False) -> Fault:
        """Return it with the worker's own text."""
        fault = super().fault(operator=operator)
        return replace(fault, message=f"{fault.message}: {self._answer}") if self._answer else fault


class UpstreamSilent(RequestError):
    """The request clock ran out."""

    kind = Kind.TIMEOUT


class UpstreamCutShort(RequestError):
    """The worker broke after the answer had begun; only an event in the stream can say so."""

    kind = Kind.WORKER_ERROR


class Cancelled(RequestError):
    """An operator cancelled the request."""

    kind, code = Kind.CLIENT_GONE, "cancelled"  # SDKs try again after a status of 500 and above, and must not
