"""Settings: the sections and keys of `cortex.toml`, each with its meaning and its default.

`settings_file.py` reads them.
"""

import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

import platformdirs
from msgspec import Meta, Struct

from cortex.functions.spec import Engine
from cortex.platform import text_files
from cortex.platform.redis_address import BadAddress, is_sentinel, sentinels

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
_DIRS = platformdirs.PlatformDirs("cortex", appauthor=False)
# Bounded above, because settings are passed to child processes as JSON, which has no infinity.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
REDIS_PREFIX = r"^(?!rq$)[A-Za-z0-9_.]{1,40}\Z"
"""`rq` is RQ's own prefix. Without hyphens, two prefixes never share the name of a queue, `PREFIX-HOST`."""
Positive = Annotated[int, Meta(ge=1, le=2**53)]
ORIGIN = r"^(\*|[a-z][a-z0-9+.\-]*://[a-z0-9.\-:\[\]]+)\Z"
"""As browsers send it: scheme, host and port in small letters, without a slash at the end."""
ROOT_PATH = r"^(?!/(v\d+|api|admin|status|health)(/|\Z))(/[A-Za-z0-9_~\-][A-Za-z0-9_.~\-]*)*\Z"
"""No path of the router itself, which could not be told from a path that the proxy has shortened."""


class Gateway(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: the router's listeners and limits."""

    listen: str = "127.0.0.1:31313"
    """The address for clients."""
    metrics_listen: str = "127.0.0.1:31314"
    """The address for Prometheus; empty: none. Beyond loopback it needs a key of scope status or the metrics token."""
    metrics_token_file: str = ""
    """A file with a secret of at least 16 characters that grants access to the metrics port only."""
    metrics_dir: str = str(Path(_DIRS.user_state_dir) / "metrics")
    """The folder for the counters of worker processes, with a subfolder per router."""
    max_body_mb: Positive = 20
    """Larger request bodies get 413. A router worker holds at most 16 such bodies at a time, a key 4 of them."""
    max_upload_mb: Positive = 512
    """Larger forms with audio or images get 413. They pass through a router without being held in memory; of a file
    that comes before its form's `model`, a router worker holds up to 8 such forms on the disk (`TMPDIR`), a key 2."""
    drain_s: Seconds = 30.0
    """How long a stopping router lets its requests finish before it cuts them."""
    hand_over: bool = False
    """A stopping router leaves its listener at once, and its worker processes finish alone. For a service manager that
    holds the listener and lets processes of a service outlive it."""
    insecure: bool = False
    """Without any API key in the record, give every caller who reaches `listen` all rights."""
    require_key: bool = False
    """Require an API key even on loopback: for a router behind a proxy on the same machine."""
    admit_forbidden: bool = False
    """Answer 403 instead of 404 for a model that a key may not use. Clients with any key can then find out which names
    exist."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, in addition to loopback's, under which a router without any API key answers browsers."""
    cors_origins: tuple[Annotated[str, Meta(pattern=ORIGIN)], ...] = ()
    """Origins, such as `https://app.example`, whose pages may read answers below `/v1`, `/v2` and `/api`, with an API
    key in a header; `*`: any. Default: none."""
    responses_ttl_s: Annotated[int, Meta(ge=0)] = 0
    """How long `/v1/responses` stores answers and conversations, encrypted under the caller's API key in Redis, in
    seconds. 0: it stores none."""
    responses_mb: Positive = 64
    """Stored answers of one API key, in MiB; above it, the oldest are deleted. One with its input takes a quarter at
    most."""
    root_path: Annotated[str, Meta(pattern=ROOT_PATH)] = ""
    """The path below which a proxy serves this router, such as `/cortex`. The proxy may pass it on or remove it."""
    tls_cert: str = ""
    """A certificate file; the router then uses https. A renewed certificate is loaded without a restart."""
    tls_key: str = ""
    """The certificate's key file."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is trusted; default: none."""
    files_dir: str = str(Path(_DIRS.user_state_dir) / "files")
    """The folder for files and batches of clients, which hold prompts. Routers behind one address share it, on a file
    system with locks."""
    file_max_mb: Positive = 200
    """Larger files get 413."""
    files_of_key_mb: Positive = 2048
    """What the files and batches of a key may take, results included."""
    batch_max_lines: Positive = 50_000
    """A batch with more lines fails."""
    batch_ttl_s: Seconds = 7 * 86400
    """Lifetime of files and results after the end of their batch; of a file that no batch uses, after its upload."""
    batch_quiet_s: Seconds = 300.0
    """Batches evict no instance that was used within this time."""
    max_connections: Positive = 4096
    """Connections per worker process; more get 503. The limit of open files (`ulimit -n`) may be lower."""
    max_connections_per_peer: Positive = 1024
    """Connections per worker process from one address, or one IPv6 /64; `trusted_proxies` are exempt."""


class Eviction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eviction]`: which instances leave when room is needed."""

    strategy: Literal["lru", "priority"] = "lru"
    """Least recently used first, or lowest `priority` first."""
    defrag_after_cycles: Count = 0
    """Number of starts after which small functions may be moved together again, for one that needs several devices;
    0: never."""


class Redis(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[redis]`: the record's Redis."""

    url: str = ""
    """Default: `redis://127.0.0.1:6379/0`; `cortex up` runs its own Redis. With Sentinel:
    `redis+sentinel://USER@HOST:26379,HOST,HOST/MASTER/0`, and `?sentinel_username=…&sentinel_password=…`."""
    prefix: Annotated[str, Meta(pattern=REDIS_PREFIX)] = "cortex"
    """Prefix of all keys, channels and queues: at most 40 letters, digits, `_` and `.`. Two fleets can share one Redis
    with different prefixes."""
    password_file: str = ""
    """A file with the password for `url`, which is then in no setting and no environment variable."""


class DeclaredDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[agent.devices]]`: a device that discovery does not find, or describes wrongly."""

    name: str
    """For display."""
    vram_mb: Positive
    """Its memory, MiB."""
    kind: Literal["gpu", "cpu"] = "gpu"
    """Whether it takes one start at a time (gpu), or several (cpu)."""
    uuid: str = ""
    """The id of the real GPU, such as `GPU-5b1c…`; without one, workers are not restricted to a device."""


class DeclaredEngine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[agent.engines]]`: an engine in its own virtual environment or folder."""

    name: Literal["vllm", "llama-server", "llama_cpp.server"]
    """The engine there."""
    path: str
    """The virtual environment, its Python, or the binary."""


class Agent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[agent]`: this host."""

    name: str = ""
    """The host's name in the record; default: its host name."""
    listen: str = "127.0.0.1:13131"
    """The address for routers."""
    address: str = ""
    """The URL that routers use for this agent; default: from `listen`."""
    tls_cert: str = ""
    """A certificate file; the agent then uses https, and `address`, if set, must begin with https."""
    tls_key: str = ""
    """The certificate's key file."""
    token_file: str = ""
    """This host's own token, as `cortex host token` makes it: the agent and the job worker then need no fleet token.
    Default: derived from the fleet token in `token_file`."""
    worker_host: str = "127.0.0.1"
    """The address that workers listen on."""
    worker_ports: str = "20000-29999"
    """The port range of workers, such as `20000-20100`, outside the kernel's range for outgoing connections; empty:
    any free port."""
    state_dir: str = str(Path(_DIRS.user_state_dir) / "agent")
    """The folder for state that outlives a restart, such as the running workers."""
    log_dir: str = str(Path(_DIRS.user_log_dir) / "workers")
    """The folder for logs of workers."""
    cache_dir: str = _DIRS.user_cache_dir
    """The folder for weights and for files that engines compile."""
    no_new_privs: bool = True
    """The agent and its workers cannot gain privileges through a set-user-id program, such as `nvidia-modprobe`."""
    worker_user: str = ""
    """The user of this host that workers run as, for an agent that is root; default: the agent's user. It must be able
    to read the weights and the engines. vLLM then starts without the launcher."""
    weight_roots: tuple[str, ...] = ()
    """Folders, in addition to `cache_dir`, from which weights may be loaded; links are resolved first. Empty: any
    path."""
    allow_engines: tuple[Engine, ...] = ()
    """Engines that may run here, for every caller of the agent; empty: all."""
    commands: tuple[str, ...] = ()
    """Programs that `engine = "command"` may run here: the first words of a function's `command`, such as
    `/opt/serve/run` or `python3 /opt/serve.py`; `*`: any. Empty: any if `listen` is on loopback and neither
    `allow_engines` nor `allow_code` is set, otherwise none."""
    allow_code: tuple[str, ...] = ()
    """Allowed variables (`LD_LIBRARY_PATH`) and options (`--trust-remote-code`) of functions that can load code, and
    `allow_pickle`; `*`: all. Empty: as with `commands`."""
    labels: tuple[str, ...] = ()
    """Labels of this host, which functions may require with their own `labels`."""
    devices: tuple[DeclaredDevice, ...] = ()
    engines: tuple[DeclaredEngine, ...] = ()
    launcher: bool = True
    """Keep a parked vLLM that has finished its imports: starts take a fraction of the time, for 1 to 2 GB of RAM."""
    reserve_mb: Count = 1024
    """Memory to keep free: RAM on a CPU host, otherwise memory of each GPU, at most half of it."""
    park_ram_mb: Count | None = None
    """RAM for the weights of idle instances that keep their process and leave their GPUs; 0: they stop instead.
    Default: half of the RAM that is free when the agent starts, by the host or by the limit of the agent's control
    group, whichever is less."""
    offer_mb_s: Count = 100
    """How fast this host may send weights, compiled code and saved conversations to other hosts of its fleet, in MiB/s
    over all of them; 0: it sends none."""
    kernels_from: tuple[str, ...] = ()
    """Hosts of the fleet whose compiled code workers here may run, by name; `*`: all. Empty: none. Such a host can run
    programs here as the workers' user."""
    keep_mb: Count = 8192
    """Disk space below `cache_dir` for the code that an engine compiles for one kind of device, and the same for saved
    conversations (`keep_context`); what was used least recently is removed. 0: no conversation is saved."""
    keep_days: Count = 30
    """How many days after its last use compiled code is kept; 0: whatever its age."""
    keep_context_s: Seconds = 86400.0
    """How long a saved conversation is kept."""
    keep_folder: str = ""
    """The folder for saved conversations; default: `contexts` below `cache_dir`. On a tmpfs they are never on disk."""
    heartbeat_s: Annotated[float, Meta(gt=0, le=1e9)] = 2.0
    """Interval at which the host publishes its record; without three of them it counts as gone."""
    health_s: Annotated[float, Meta(gt=0)] = 5.0
    """Interval at which ready workers are checked and measured."""
    stop_grace_s: Seconds = 5.0
    """Time from TERM to KILL."""
    drain_grace_s: Seconds = 60.0
    """How long cool, eviction and host drain wait for requests in flight."""
    start_silence_s: Seconds = 300.0
    """A start fails after this time without a sign of life."""
    start_ceiling_s: Seconds = 1800.0
    """Time limit of a start, in addition to the time for reading the weights at 50 MiB/s."""
    keep_workers: bool = True
    """Leave the workers running when the agent stops; the next agent adopts them."""


class Hub(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[hub]`: the source of weights."""

    endpoint: str = ""
    """A mirror of the HuggingFace hub; default: `HF_ENDPOINT`, else huggingface.co."""
    token_file: str = ""
    """A file with the token for gated and private repositories; default: `HF_TOKEN`, else the token saved by
    `hf auth login`."""
    keep_free_mb: Count = 2048
    """Disk space that downloads leave free."""


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`: the log of every process, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged. A request is an `info`, a failed one a `warning`."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: coloured text on a terminal, JSON lines otherwise."""


class Tracing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tracing]`: export of spans. A caller's `traceparent` is passed on to workers in any case."""

    endpoint: str = ""
    """Base URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://127.0.0.1:4318`; empty: none."""
    service: str = "cortex"
    """The service name in spans."""
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """The share of requests to trace when the caller has not decided it."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `cortex.toml`."""

    gateway: Gateway = Gateway()
    eviction: Eviction = Eviction()
    redis: Redis = Redis()
    agent: Agent = Agent()
    hub: Hub = Hub()
    log: Log = Log()
    tracing: Tracing = Tracing()
    models_config: str = "models.toml"
    """The catalogue; a relative path is resolved from the folder of `cortex.toml`."""
    pretend: bool = False
    """Serve every function with the fake engine: for trying a fleet without its GPUs."""
    token_file: str = str(Path(_DIRS.user_state_dir) / "fleet.token")
    """A file with the fleet token: the secret of routers, and of agents without `[agent] token_file`; created on first
    use."""
    ca_file: str = ""
    """A file with certificates to trust, in addition to the system's, for TLS to routers, agents and Redis."""
    local_key_file: str = ""
    """A file with the admin key of this machine's user. `cortex up` writes it and sets this."""

    @property
    def redis_url(self) -> str:
        """The address of the record, with the password from `password_file`. Raises SettingsError."""
        url, file = self._trusting(self.redis.url or DEFAULT_REDIS_URL), self.redis.password_file
        if is_sentinel(url):
            try:
                sentinels(url)
            except BadAddress as error:
                raise SettingsError(f"[redis] url: {error}") from None
        elif not _is_redis(url):  # not quoted: it may contain a password
            raise SettingsError(
                "[redis] url: does not have the form redis://USER@HOST:PORT/0, rediss://…, unix://USER@/PATH or "
                "redis+sentinel://USER@HOST:PORT,HOST/MASTER; put a password with /, : or @ into password_file"
            )
        if not file:
            return url
        try:
            password = text_files.read(Path(file).expanduser()).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"[redis] password_file: {file} cannot be read: {error}") from None
        scheme, _, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        user, _, hosts = authority.rpartition("@")
        return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{slash}{path}"

    @property
    def redis_shown(self) -> str:
        """The address of the record for display: without user, password or options."""
        scheme, _, rest = (self.redis.url or DEFAULT_REDIS_URL).partition("?")[0].partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"

    def _trusting(self, url: str) -> str:
        if not self.ca_file or not url.startswith(("rediss://", "rediss+sentinel://")) or "ssl_ca_certs=" in url:
            return url
        certificates = quote(str(Path(self.ca_file).expanduser()), safe="/")
        return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={certificates}"

    @property
    def host_name(self) -> str:
        """The name of this host in the record."""
        return self.agent.name or socket.gethostname()


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
    except ValueError:
        return False


class SettingsError(Exception):
    """The settings are invalid. The message has a line per problem."""
