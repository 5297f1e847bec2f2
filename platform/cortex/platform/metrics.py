"""All metrics: one table of names, labels and meanings. `docs/metrics.md` is generated from it.

`owner` is the source. A *router* counts its own requests: sum over routers. Metrics of the *fleet* come from the
record and are the same at every router: take the maximum, never the sum. Label values are bounded: functions of the
catalogue (`model`), hosts (`node`, for compatibility), devices, and constants of this code; never a request, a client
or free text.
"""

from typing import Literal

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram"]
Owner = Literal["router", "fleet"]

SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""For the time that a router adds."""
TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Between two chunks of an answer: 500 to 0.2 per second."""
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""Until the first token: tens of milliseconds when warm, minutes after a start."""
LONG_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""For whole requests and starts."""
RATE = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 400.0)
"""Tokens per second."""


class Metric(Struct, frozen=True, kw_only=True):
    """One metric. A counter's name ends in `_total`; a histogram has buckets."""

    name: str
    kind: Kind
    owner: Owner
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def _counter(name: str, owner: Owner, labels: str, help: str) -> Metric:
    return Metric(name=name, kind="counter", owner=owner, labels=tuple(labels.split()), help=help)


def _gauge(name: str, owner: Owner, labels: str, help: str) -> Metric:
    return Metric(name=name, kind="gauge", owner=owner, labels=tuple(labels.split()), help=help)


def _histogram(name: str, owner: Owner, labels: str, buckets: tuple[float, ...], help: str) -> Metric:
    return Metric(name=name, kind="histogram", owner=owner, labels=tuple(labels.split()), help=help, buckets=buckets)


# Requests. The first nine have the names and labels that they had in the Rust system that cortex replaces.

REQUESTS = _counter("cortex_requests_total", "router", "model node", "Finished requests for a function.")
ERRORS = _counter(
    "cortex_request_errors_total",
    "router",
    "model node",
    "Requests that ended with a status of 500 and above, or with an error in the stream.",
)
DURATION = _histogram(
    "cortex_request_duration_seconds", "router", "model node", LONG_S, "Time from a request's arrival to its last byte."
)
FIRST_TOKEN = _histogram(
    "cortex_time_to_first_token_seconds",
    "router",
    "model node",
    FIRST_S,
    "Time from a streaming request's arrival to the worker's first chunk, including waits.",
)
TOKENS_PER_SECOND = _histogram(
    "cortex_tokens_per_second", "router", "model node", RATE, "Tokens of a streamed answer, from the first to the last."
)
TOKENS_IN = _counter(
    "cortex_prompt_tokens_total", "router", "model node", "Tokens of prompts, cached or not, as the workers count."
)
TOKENS_OUT = _counter("cortex_completion_tokens_total", "router", "model node", "Tokens of answers.")
TOKENS_CACHED = _counter(
    "cortex_cached_prompt_tokens_total", "router", "model node", "Tokens of prompts that a worker had cached."
)
GPU_S = _counter(
    "cortex_gpu_seconds_total", "router", "model node", "Time of GPUs, shared by the requests on them by tokens."
)
ENERGY = _counter(
    "cortex_energy_joules_total", "router", "model node", "Energy of GPUs, shared by the requests on them by tokens."
)
COST = _counter(
    "cortex_cost_usd_total", "router", "model node", "Dollars that requests cost, by the `cost` of their functions."
)
AUDIO_S = _counter(
    "cortex_audio_seconds_total", "router", "model node", "Seconds of audio transcribed, where the workers tell."
)
CHARACTERS = _counter("cortex_speech_characters_total", "router", "model node", "Characters of texts spoken.")
IMAGES = _counter("cortex_images_total", "router", "model node", "Images drawn or edited.")
REJECTIONS = _counter(
    "cortex_model_rejections_total", "router", "model reason", "Requests refused by the router, by the kind of fault."
)
REFUSED = _counter(
    "cortex_requests_refused_total",
    "router",
    "reason",
    "Requests rejected before they reached a function: no key, over a key's limits, an unknown model, an invalid body.",
)
RESPONSES = _counter(
    "cortex_responses_total", "router", "model dialect status", "Answers by dialect and by the client's HTTP status."
)
QUEUE_WAIT = _histogram(
    "cortex_queue_wait_seconds", "router", "model", LONG_S, "Wait for an instance, of the requests that had to wait."
)
INTER_TOKEN = _histogram(
    "cortex_inter_token_seconds", "router", "model node", TOKEN_S, "Time between two chunks of a worker's stream."
)
OVERHEAD = _histogram(
    "cortex_overhead_seconds",
    "router",
    "stage",
    SHORT_S,
    "The router's own time per request: `read` (parse it), `choose` (find an instance), `translate` (put the answer "
    "into the client's dialect, all chunks together).",
)
REPLAYS = _counter(
    "cortex_replays_total",
    "router",
    "model node",
    "Requests sent to another instance after a worker on that host broke.",
)
DISCONNECTS = _counter(
    "cortex_client_disconnects_total", "router", "model", "Clients that disconnected before the end."
)
IN_FLIGHT = _gauge("cortex_requests_in_flight", "router", "model node", "Requests at workers now.")
WAITING = _gauge("cortex_requests_waiting", "router", "model", "Requests that wait for an instance now.")
BREAKER = _gauge(
    "cortex_breaker_open",
    "router",
    "model node",
    "Instances avoided for a moment because they refused a connection, counted per router worker process.",
)
ROUTER_FAULTS = _counter(
    "cortex_router_faults_total",
    "router",
    "work",
    "Exceptions that background work survived. `work` is `api keys`, `limits`, `record`, `catalogue`, "
    "`report`, `sweep`, `silent hosts` or `counts`.",
)
AWAY = _gauge("cortex_record_away", "router", "", "Worker processes of this router that cannot read the record.")
PROCESSES = _gauge("cortex_router_processes", "router", "", "Worker processes of this router.")
CPU = _counter("cortex_router_cpu_seconds_total", "router", "", "CPU time of this router's worker processes.")
BATCHES = _gauge(
    "cortex_batches",
    "router",
    "state",
    "Open batches in this router's folder: `validating`, `in_progress`, `cancelling`, `finalizing`. Routers that share "
    "a folder count the same ones.",
)
BATCH_LINES = _gauge("cortex_batch_lines", "router", "state", "Lines of the open batches: `done` and `left`.")
BATCH_WAITS = _counter(
    "cortex_batch_waits_total",
    "router",
    "model",
    "Lines of batches that could not run now, and are sent again. They are no requests in the other metrics.",
)
DROPPED = _counter("cortex_series_dropped_total", "router", "", "Counts dropped because a process had too many series.")

# The fleet, as its agents count.

COLD_STARTS = _counter("cortex_cold_starts_total", "fleet", "model node", "Instances that came up.")
EVICTIONS = _counter(
    "cortex_evictions_total", "fleet", "model node", "Instances stopped or parked to make room for others."
)
REGRETTED = _counter(
    "cortex_evictions_regretted_total",
    "fleet",
    "model node",
    "Evicted functions that were requested again within five minutes and were not ready elsewhere.",
)
STARTS = _counter(
    "cortex_starts_total",
    "fleet",
    "node model path",
    "Instances that came up, by the steps needed: `fetched` (weights first), `evicted` (others had to leave), `warm` "
    "(a parked launcher), `plain`; or `sleep` and `freeze`, the tier from which a parked one returned.",
)
LAUNCHES = _counter(
    "cortex_launches_total",
    "fleet",
    "node server how",
    "Instances that came up, by server and kind of start: `warm` (from a parked launcher) or `plain`.",
)
START_PHASE = _histogram(
    "cortex_start_phase_seconds",
    "fleet",
    "node model phase",
    LONG_S,
    "Time that starts spent in each phase: `fetching`, `placing`, and the steps that the worker's log shows: "
    "`starting`, `importing`, `setting up`, `loading weights`, `warming up`, `opening`.",
)
START = _histogram(
    "cortex_start_seconds",
    "fleet",
    "node model mode",
    LONG_S,
    "Time of starts, from the worker's process to ready: `fast`, `full`, or `one` where the engine has one mode.",
)
PARKING = _histogram(
    "cortex_park_seconds", "fleet", "node model tier", LONG_S, "Time to move an instance's memory off its devices."
)
RETURN = _histogram(
    "cortex_return_seconds",
    "fleet",
    "node model tier",
    LONG_S,
    "Time to move a parked instance's memory back, with its first request of one token.",
)
START_FAILURES = _counter(
    "cortex_start_failures_total", "fleet", "node model reason", "Instances that failed, by the kind of failure."
)
DRAINS = _counter("cortex_drains_total", "fleet", "node model why", "Drains of instances, by reason.")
NO_ROOM = _counter("cortex_placement_refusals_total", "fleet", "node model", "Starts for which a host had no room.")
DECISIONS = _counter("cortex_decisions_total", "fleet", "node what", "Decisions of agents, by kind.")

# The fleet, from the record.

AGENT_FAULTS = _counter(
    "cortex_agent_faults_total", "fleet", "node work", "Exceptions that an agent's background work raised and survived."
)
RECORD_UP = _gauge("cortex_record_up", "fleet", "", "1 while Redis answers this router's metrics port.")
RECORD_PING = _gauge("cortex_record_ping_seconds", "fleet", "", "Redis' response time.")
ROUTERS = _gauge("cortex_routers", "fleet", "", "Router worker processes that report.")
HOSTS = _gauge("cortex_hosts", "fleet", "state", "Hosts that report, `open` or `cordoned`.")
HOST_AGE = _gauge("cortex_host_silent_seconds", "fleet", "node", "Time since a host's last report.")
INSTANCES = _gauge("cortex_instances", "fleet", "node model state", "Instances by state.")
MODEL_IN_FLIGHT = _gauge(
    "cortex_model_in_flight", "fleet", "node model", "Requests in flight, over all routers, from their last reports."
)
MODEL_QUEUE = _gauge("cortex_model_queue_depth", "fleet", "model", "Waiting requests, over all routers.")
PARK_RAM = _gauge(
    "cortex_park_ram_mb",
    "fleet",
    "node kind",
    "RAM for parked instances in MiB: `budget`, and `held` by them and by those that returned.",
)
DEVICE_MEMORY = _gauge(
    "cortex_device_memory_mb",
    "fleet",
    "node device kind",
    "MiB of a device: `total`, `budget` (the limit for instances), `admitted` (reserved for instances), `foreign` "
    "(processes outside cortex), `used` (measured).",
)
VRAM_USED = _gauge("cortex_device_vram_used_mb", "fleet", "node device", "MiB in use, as the hardware reports.")
VRAM_FREE = _gauge("cortex_device_vram_free_mb", "fleet", "node device", "MiB not in use, as the hardware reports.")
UTILIZATION = _gauge("cortex_device_utilization_pct", "fleet", "node device", "Utilization of a device, in percent.")
TEMPERATURE = _gauge("cortex_device_temp_c", "fleet", "node device", "Temperature of a device, in °C.")
DEVICE_ENERGY = _counter(
    "cortex_device_energy_joules_total", "fleet", "node device", "Energy of a GPU since its driver was loaded."
)
BACKOFF = _gauge(
    "cortex_start_backoff", "fleet", "node model", "1 while a host refuses to start a function that failed repeatedly."
)
BUDGETS = _gauge(
    "cortex_budgets",
    "fleet",
    "state",
    "Keys with a budget, by what they have spent of it this month: `open`, `low` (80 % and more) or `spent` (their "
    "requests are refused).",
)
JOBS = _gauge("cortex_jobs", "fleet", "queue state", "Jobs: `queued`, `started`, `failed`, `finished`.")

TABLE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


_INTRODUCTION = """# Metrics

A router serves Prometheus on a port of its own, `[gateway] metrics_listen` (31314), path `/metrics`, for all of its
worker processes together. On loopback it needs no key and answers the machine's own names; elsewhere it needs the
secret of `[gateway] metrics_token_file` as a bearer token, or a key of scope status or admin. `deploy/monitoring/` has
a scrape configuration, alert rules and a Grafana dashboard.

A **router** counts its own requests: sum over routers. Metrics of the **fleet** come from the record and are the same
at every router: take the maximum (`max by (…)`), never the sum. While Redis does not answer, they are absent rather
than stale. `model` is a function's id, `node` a host's name (`none`: the request reached no host). This page is
generated from the table in the code: `just docs`.

| name | kind | of | labels | meaning |
|---|---|---|---|---|"""


def document() -> str:
    """Return `docs/metrics.md`."""
    lines = [_INTRODUCTION]
    for m in TABLE:
        labels = ", ".join(f"`{label}`" for label in m.labels) or "–"
        lines.append(f"| `{m.name}` | {m.kind} | {m.owner} | {labels} | {m.help} |")
    lines += ["", "Buckets of the histograms, upper bounds:", ""]
    lines += [f"- `{m.name}`: {', '.join(f'{b:g}' for b in m.buckets)}" for m in TABLE if m.buckets]
    return "\n".join(lines) + "\n"
