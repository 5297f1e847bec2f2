"""Every error that rejects a request, as one tree, with what the caller can do next.

RequestError
├── DialectError        for the client alone: the text may quote the request
│   ├── BadRequest      correct the request
│   ├── ContextExceeded shorten the prompt, or lower the output limit
│   ├── WorkerRefusal   the worker refused the request, or failed while it served it
│   └── BadAnswer       retry: the worker's answer cannot be translated
├── NoKey               send a valid API key
│   └── BatchKeyGone    none: the key of this batch is revoked
├── NotAllowed          use a key with the required scope
├── CannotServe         use another function: this one's server lacks the feature
├── RouteNotFound       use a route that the function's server has
├── NotLoaded           retry when the function has served a request: only a running worker can answer
├── FunctionNotFound    use a name from the catalogue
├── HostNotFound        use the name of a live host
├── InstanceNotFound    use an instance that a host reports
├── RequestNotFound     use the id of a live or recent request
├── SharedRequestId     name the key as well: requests of several keys have this id
├── ResponseNotFound    use the id of a response or conversation that this key stored and that has not expired
├── TooManyRuns         retry when another of the key's responses in the background is complete
├── KeyNotFound         use an existing API key's name or id
├── KeyNameTaken        use another name, or rotate the existing key
├── FileNotStored       use the id of one of the key's own files
├── BatchNotFound       use the id of one of the key's own batches
├── KeyFull             delete files, or wait until some expire
├── FilesFull           retry, and tell the operator: the disk with the files is full or broken
├── TooManyBatches      retry when one of the key's batches has ended
├── JobNotFound         use the id of a running job
├── TooManyAnswers      request fewer answers: the key's limits cannot cover them
├── OverLimits          retry when the key's limits allow it
│   └── OverBudget      retry next month, or ask for a larger budget
├── QueueFull           retry after `retry_after`
├── KeyHoldsTooMuch     retry when another of the key's requests has finished
├── RouterHoldsTooMuch  retry when other requests have finished
├── NoDisk              send the form's `model` before its file
├── NotReadyInTime      retry: the function was still starting at the timeout
├── NoCapacity          retry: no instance can be evicted for the function now
├── Suspected           retry later: workers died while they served this request
├── StartFailed         ask the operator: the message has the cause
├── AdapterFailed       use the base or another variant: no instance has loaded this adapter
├── TooManyListeners    retry, or use another worker, to follow the events
├── BatchWaits          retry: this line of a batch gives way to interactive requests
├── RecordIsAway        retry: Redis does not answer, so no function can start
├── RouterStops         retry: this router stops; its successor, or another one, serves
├── UpstreamBroke       retry: the worker failed before its first byte, on every attempt
├── UpstreamSilent      the worker exceeded the function's request timeout
└── Cancelled           an operator cancelled the request

RequestError and the branch that dialects raise are in `dialects/core/errors.py`, beside the table of statuses;
`http_answer.py` writes errors to the client.
"""

from collections.abc import Iterable, Sequence
from math import ceil

from msgspec.structs import replace

from cortex.router.dialects.core.errors import BadRequest as BadRequest
from cortex.router.dialects.core.errors import Fault, Kind
from cortex.router.dialects.core.errors import RequestError as RequestError

SEE_WHY = "; an operator can look up why by the request's id"


class NoKey(RequestError):
    """The request has no API key, or an unknown one."""

    kind = Kind.NO_KEY


class BatchKeyGone(NoKey):
    """The key of a batch is revoked, has expired or may not make requests. Its batch worker does not retry."""

    headers = ((b"x-should-retry", b"false"),)

    def __init__(self) -> None:
        super().__init__("the API key of this batch is revoked, has expired or may not make requests")


class NotAllowed(RequestError):
    """The caller lacks the required right."""

    kind = Kind.FORBIDDEN


class CannotServe(RequestError):
    """The function's server does not support the request."""

    kind = Kind.UNSUPPORTED


class RouteNotFound(RequestError):
    """The function's server has no such route for clients."""

    kind, code = Kind.UNKNOWN_PATH, "route_not_found"

    def __init__(self, function: str, path: str, routes: Iterable[str]) -> None:
        known = ", ".join(sorted(routes)) or "none"
        super().__init__(f"the server of '{function}' has no {path} for clients; its own routes are: {known}")


class NotLoaded(RequestError):
    """The function has no running worker, and this route starts none."""

    kind = Kind.LOADING

    def __init__(self, function: str, path: str) -> None:
        super().__init__(
            f"'{function}' is not loaded, and {path} describes a running worker: send it a request first",
            retry_after=5,
        )


class FunctionNotFound(RequestError):
    """The name is neither an id nor an alias of the catalogue."""

    kind = Kind.UNKNOWN_MODEL

    def __init__(self, name: str, near: Sequence[str]) -> None:
        self._hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        self._name = name[:200]
        super().__init__(f"the model {self._name!r} is not in the catalogue{self._hint}", param="model")

    def fault(self, *, operator: bool = False) -> Fault:
        """Anthropic clients expect the text `model: NAME`."""
        return replace(super().fault(operator=operator), anthropic_message=f"model: {self._name}{self._hint}")


class HostNotFound(RequestError):
    """No live host has that name."""

    kind, code = Kind.UNKNOWN_PATH, "host_not_found"

    def __init__(self, name: str, near: Sequence[str]) -> None:
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"no host {name[:200]!r} is alive{hint}")


class InstanceNotFound(RequestError):
    """No host has that instance or its log."""

    kind, code = Kind.UNKNOWN_PATH, "instance_not_found"


class RequestNotFound(RequestError):
    """No router worker has a request with that id."""

    kind, code = Kind.UNKNOWN_PATH, "request_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"no live or recent request has the id {id[:128]!r}")


class ResponseNotFound(RequestError):
    """This key has stored no response or conversation with that id, or it has expired."""

    kind, code = Kind.UNKNOWN_PATH, "response_not_found"

    def __init__(self, id: str, param: str | None = None, why: str = "") -> None:
        noun = "Conversation" if id.startswith("conv_") else "Response"
        super().__init__(f"{noun} with id {id[:128]!r} not found{why}", param=param)


class TooManyRuns(RequestError):
    """The key's responses in the background are at their limit on this router worker."""

    kind = Kind.RATE_LIMITED

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this key runs the allowed {most} responses in the background on this router worker", retry_after=5
        )


class SharedRequestId(RequestError):
    """Requests of several keys have this id."""

    kind, code = Kind.BAD_REQUEST, "request_id_shared"

    def __init__(self, id: str, owners: Sequence[str]) -> None:
        names = ", ".join(owner or "no key" for owner in owners[:10])
        super().__init__(f"requests of several keys have the id {id[:128]!r} ({names}): add the key", param="key")


class KeyNotFound(RequestError):
    """No API key has that name or id."""

    kind, code = Kind.UNKNOWN_PATH, "key_not_found"


class KeyNameTaken(RequestError):
    """Another API key has that name."""

    kind, code = Kind.BAD_REQUEST, "key_name_taken"


class JobNotFound(RequestError):
    """No running job has that id."""

    kind, code = Kind.UNKNOWN_PATH, "job_not_found"

    def __init__(self, name: str, near: Sequence[str]) -> None:
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"no job {name[:200]!r} is running{hint}")


class FileNotStored(RequestError):
    """The key has no file with that id."""

    kind, code = Kind.UNKNOWN_PATH, "file_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"no file of this key has the id {id[:100]!r}", param="id")


class BatchNotFound(RequestError):
    """The key has no batch with that id."""

    kind, code = Kind.UNKNOWN_PATH, "batch_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"no batch of this key has the id {id[:100]!r}", param="id")


class TooManyBatches(RequestError):
    """The key has the maximum number of open batches."""

    kind, code = Kind.RATE_LIMITED, "too_many_batches"

    def __init__(self, most: int) -> None:
        super().__init__(f"this key has {most} batches that have not ended; cancel one or wait", retry_after=60)


class KeyFull(RequestError):
    """The key's files and batches take as much space as they may."""

    kind, code = Kind.FORBIDDEN, "key_full"

    def __init__(self, most_mb: int) -> None:
        super().__init__(
            f"the files and batches of this key may take {most_mb} MiB ([gateway] files_of_key_mb): "
            "delete files, or wait until some expire"
        )


class FilesFull(RequestError):
    """The disk with the files is full, or cannot be used."""

    kind, code = Kind.NO_CAPACITY, "files_full"


class QueueFull(RequestError):
    """The function's queue is at its limit."""

    kind = Kind.RATE_LIMITED


class TooManyAnswers(RequestError):
    """A request for more answers than its key may make requests, per minute or concurrently."""

    kind = Kind.BAD_REQUEST

    def __init__(self, answers: int, most: int) -> None:
        super().__init__(
            f"a request for {answers} answers counts as {answers}, and this key may make {most}", param="n"
        )


class OverLimits(RequestError):
    """The key has exhausted one of its limits. `headers` carry the current usage."""

    kind = Kind.RATE_LIMITED

    def __init__(self, message: str, wait_s: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(message, retry_after=max(1, ceil(wait_s)))
        self.headers = (*headers,)


class OverBudget(OverLimits):
    """The key has spent its budget for this month."""

    code = "budget_exhausted"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message, wait_s, ())


class KeyHoldsTooMuch(RequestError):
    """The bodies of a key's live requests have reached their limit."""

    kind = Kind.RATE_LIMITED

    def __init__(self, most: int, where: str = "") -> None:
        super().__init__(
            f"this key's live requests hold the allowed {most >> 20} MiB{where} on this router worker;"
            " retry when one of them has finished",
            retry_after=5,
        )


class RouterHoldsTooMuch(RequestError):
    """The bodies of all live requests have reached the router worker's limit."""

    kind = Kind.NO_CAPACITY

    def __init__(self, most: int, where: str = "") -> None:
        super().__init__(
            f"the live requests hold the allowed {most >> 20} MiB{where} on this router worker",
            retry_after=5,
        )


class NoDisk(RequestError):
    """A file that came before its form's `model` cannot be held: the disk is full or cannot be written."""

    kind, code = Kind.NO_CAPACITY, "no_disk"

    def __init__(self, why: str) -> None:
        public = "this router cannot hold a file that comes before `model`: send `model` first, or as ?model="
        super().__init__(f"{public}: {why}", public=public)


class NotReadyInTime(RequestError):
    """The function's startup timeout passed before an instance was ready."""

    kind = Kind.LOADING


class NoCapacity(RequestError):
    """No host can run the function now."""

    kind, code = Kind.NO_CAPACITY, "no_capacity"


class Suspected(RequestError):
    """Workers of the function repeatedly died while serving this request or others of its key."""

    kind, code = Kind.NO_CAPACITY, "suspected_request"

    def __init__(self, function: str, *, retry_after: int) -> None:
        super().__init__(
            f"workers of '{function}' died or hung while they served this request or others of its API key, so it is"
            f" refused for {retry_after} s: change the request, or show its id to the operator (`cortex why ID`)",
            retry_after=retry_after,
        )


class StartFailed(RequestError):
    """The function's start failed, or keeps failing."""

    kind, code = Kind.CRASH_LOOPING, "start_failed"


class AdapterFailed(RequestError):
    """The function is a variant whose adapter no instance has loaded; the base and its other variants are served."""

    kind, code = Kind.CRASH_LOOPING, "adapter_failed"


class TooManyListeners(RequestError):
    """The worker's event streams are at their limit."""

    kind = Kind.RATE_LIMITED


class BatchWaits(RequestError):
    """A line of a batch may not run now, or gives way to an interactive request."""

    kind = Kind.BATCH_WAITS

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class RecordIsAway(RequestError):
    """Redis does not answer and no instance is warm."""

    kind, code = Kind.NO_CAPACITY, "record_away"


class RouterStops(RequestError):
    """The router stops, and the request was not answered within `[gateway] drain_s`."""

    kind, code = Kind.NO_CAPACITY, "router_stops"

    def __init__(self) -> None:
        super().__init__("this router stops before the request is answered: send it again", retry_after=1)


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
    """The function's request timeout passed."""

    kind = Kind.TIMEOUT


class Cancelled(RequestError):
    """An operator cancelled the request."""

    kind, code = Kind.CLIENT_GONE, "cancelled"  # not a 5xx, because SDKs retry those

    def __init__(self) -> None:
        super().__init__("cancelled by an operator", public="this request was cancelled by an operator")
