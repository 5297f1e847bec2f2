"""Settings: `cortex.toml`, then environment variables, checked once at the start of a process.

Every key has a default. A file that does not parse, an unknown key or a wrong value stops the process with
the line and the nearest key. `CORTEX_GATEWAY__LISTEN` overrides `[gateway] listen`, and so for every key;
`CORTEX_REDIS_URL` is short for `CORTEX_REDIS__URL`. Nothing else in cortex reads the environment, but for what a
service manager puts there (`systemd.py`).
"""

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import quote, urlsplit

import msgspec
import platformdirs
from msgspec import Meta, Struct

from cortex.functions.names import did_you_mean
from cortex.functions.spec import Engine
from cortex.functions.toml_lines import TomlLines
from cortex.platform import text_files
from cortex.platform.redis_address import BadAddress, is_sentinel, sentinels

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
_DIRS = platformdirs.PlatformDirs("cortex", appauthor=False)
# Bounded above, because settings travel to child processes as JSON, which has no infinity.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
REDIS_PREFIX = r"^(?!rq$)[A-Za-z0-9_.]{1,40}\Z"
"""`rq` is RQ's own; without a hyphen no two prefixes share the name of a queue, `PREFIX-HOST`."""
Positive = Annotated[int, Meta(ge=1, le=2**53)]


class Gateway(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: the router's listeners and limits."""

    listen: str = "127.0.0.1:31313"
    """Where clients reach the router."""
    metrics_listen: str = "127.0.0.1:31314"
    """Where Prometheus reads; empty: nowhere. Beyond loopback it needs a key of scope status or the metrics token."""
    metrics_token_file: str = ""
    """A file with a secret of at least 16 characters that opens the metrics port, and nothing else."""
    metrics_dir: str = str(Path(_DIRS.user_state_dir) / "metrics")
    """Where worker processes leave what they counted, in a folder per router."""
    max_body_mb: Positive = 20
    """A request whose body is larger gets 413. A router worker holds 16 such bodies at a time, a key 4 of them."""
    drain_s: Seconds = 30.0
    """How long a stopping router finishes the requests it holds; what is left then is cut."""
    hand_over: bool = False
    """A router that stops leaves its listener at once, and its worker processes finish alone: for a service manager
    that holds the listener and lets the processes of a service outlive it."""
    insecure: bool = False
    """Serve anybody who reaches `listen`, and obey them, as long as no API key was made."""
    require_key: bool = False
    """Serve nobody without an API key, even on loopback: for a router behind a proxy on the same machine."""
    admit_forbidden: bool = False
    """Answer 403 for a model that a key may not use, instead of the 404 of one that does not exist: clients with any
    key can then find out which names there are."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside loopback's own under which a router without any API key answers browsers."""
    tls_cert: str = ""
    """A certificate file: the router then speaks https. A renewed one is taken without a restart."""
    tls_key: str = ""
    """The key of the certificate."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is believed; none by default."""
    max_connections: Positive = 4096
    """Connections of one worker process; more are answered 503. Open files (`ulimit -n`) may allow fewer."""
    max_connections_per_peer: Positive = 1024
    """Connections of one address, or one IPv6 /64, to one worker process; `trusted_proxies` are exempt."""


class Eviction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eviction]`: who leaves when room is needed."""

    strategy: Literal["lru", "priority"] = "lru"
    """Least recently used first, or lowest `priority` first."""
    defrag_after_cycles: Count = 0
    """Starts between two times small functions are moved together for one that needs several devices; 0: never."""


class Redis(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[redis]`: where the record is."""

    url: str = ""
    """Default: `redis://127.0.0.1:6379/0`; for `cortex up`, a Redis of its own. With Sentinel:
    `redis+sentinel://USER@HOST:26379,HOST,HOST/MASTER/0`, and `?sentinel_username=…&sentinel_password=…`."""
    prefix: Annotated[str, Meta(pattern=REDIS_PREFIX)] = "cortex"
    """What the names of all keys, channels and queues begin with: letters, digits, `_` and `.`, at most 40. Two fleets
    can share one Redis when each has its own."""
    password_file: str = ""
    """The password for `url`, in a file of its own, so that it is in no setting and no environment."""


class DeclaredDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[agent.devices]]`: a device that discovery cannot see, or sees wrongly."""

    name: str
    """For people to read."""
    vram_mb: Positive
    """Its memory, MiB."""
    kind: Literal["gpu", "cpu"] = "gpu"
    """Whether one start at a time is made on it (gpu), or several (cpu)."""
    uuid: str = ""
    """The id of the real GPU it stands for, such as `GPU-5b1c…`; without one, workers are told of no device."""


class DeclaredEngine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[agent.engines]]`: an engine that lives in a virtual environment, or a folder, of its own."""

    name: Literal["vllm", "llama-server", "llama_cpp.server"]
    """What is there."""
    path: str
    """The virtual environment, its Python, or the binary."""


class Agent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[agent]`: this host."""

    name: str = ""
    """The host's name in the record; default: its host name."""
    listen: str = "127.0.0.1:13131"
    """Where routers reach this agent."""
    address: str = ""
    """The URL at which routers reach this agent; default: from `listen`."""
    tls_cert: str = ""
    """A certificate file: the agent then speaks https, and an `address` that is given begins with it."""
    tls_key: str = ""
    """The key of the certificate."""
    worker_host: str = "127.0.0.1"
    """The address workers listen on."""
    worker_ports: str = "20000-29999"
    """The range of ports of workers, such as `20000-20100`, outside the kernel's own for outgoing connections; empty:
    any free port."""
    state_dir: str = str(Path(_DIRS.user_state_dir) / "agent")
    """What outlives a restart: which workers run."""
    log_dir: str = str(Path(_DIRS.user_log_dir) / "workers")
    """Logs of workers."""
    cache_dir: str = _DIRS.user_cache_dir
    """Weights, and what engines compile."""
    no_new_privs: bool = True
    """Neither the agent nor a worker can gain privileges by a set-user-id program, such as `nvidia-modprobe`."""
    worker_user: str = ""
    """A user of this host that workers run as, for an agent that is root; default: the agent's own. It must be able to
    read the weights and the engines. vLLM then starts plainly, without the launcher."""
    weight_roots: tuple[str, ...] = ()
    """Folders from which weights may be loaded, beside `cache_dir`; links are followed first. None: any path."""
    allow_engines: tuple[Engine, ...] = ()
    """Engines that may run here, whoever calls the agent; none: all."""
    commands: tuple[str, ...] = ()
    """Programs that `engine = "command"` may run here: the words that a function's `command` begins with, such as
    `/opt/serve/run` or `python3 /opt/serve.py`; `*`: any. None: any while `listen` is on loopback and neither
    `allow_engines` nor `allow_code` is set, otherwise none."""
    allow_code: tuple[str, ...] = ()
    """Variables (`LD_LIBRARY_PATH`) and options (`--trust-remote-code`) of functions that can load code, and
    `allow_pickle`, that are allowed here; `*`: all. None: as with `commands`."""
    labels: tuple[str, ...] = ()
    """Words that functions may ask for with their own `labels`."""
    devices: tuple[DeclaredDevice, ...] = ()
    engines: tuple[DeclaredEngine, ...] = ()
    launcher: bool = True
    """Keep a vLLM parked that has imported all it needs: starts take a fraction of the time, for about 1 GB of RAM."""
    reserve_mb: Count = 1024
    """Memory kept free: of RAM on a CPU host, of each GPU otherwise half of it at most."""
    heartbeat_s: Annotated[float, Meta(gt=0, le=1e9)] = 2.0
    """How often the host says that it is alive; after three it counts as gone."""
    health_s: Annotated[float, Meta(gt=0)] = 5.0
    """How often ready workers are checked and measured."""
    stop_grace_s: Seconds = 5.0
    """From TERM to KILL."""
    drain_grace_s: Seconds = 60.0
    """How long cool, eviction and host drain wait for requests in flight."""
    start_silence_s: Seconds = 300.0
    """A start that shows no sign of life this long has failed."""
    start_ceiling_s: Seconds = 1800.0
    """No start takes longer, beside the time it takes to read the weights at 50 MiB/s."""
    keep_workers: bool = True
    """Leave the workers running when the agent stops; the next agent takes them over."""


class Hub(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[hub]`: where weights are fetched from."""

    endpoint: str = ""
    """A mirror of the HuggingFace hub; default: `HF_ENDPOINT`, else huggingface.co."""
    token_file: str = ""
    """A file with the token for gated and private repositories; default: `HF_TOKEN`, else what `hf auth login` kept."""
    keep_free_mb: Count = 2048
    """Disk that downloads leave free."""


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`: what every process writes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged. Each request is an `info`, one that failed a `warning`."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: colours for somebody who watches, JSON lines otherwise."""


class Tracing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tracing]`: where spans go. A caller's `traceparent` is passed on to workers in any case."""

    endpoint: str = ""
    """Base URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://127.0.0.1:4318`; empty: none."""
    service: str = "cortex"
    """What spans call this router."""
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """The share of requests that are traced when their caller has not decided it."""


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
    """The catalogue; a relative path is taken from the folder of `cortex.toml`."""
    pretend: bool = False
    """Serve every function with the fake engine, whatever its own: for trying a fleet without its GPUs."""
    token_file: str = str(Path(_DIRS.user_state_dir) / "fleet.token")
    """The secret that routers and agents share; made on first use."""
    ca_file: str = ""
    """Certificates that cortex trusts, beside the system's, when it calls a router, an agent or Redis by TLS."""
    local_key_file: str = ""
    """Holds the admin key of this machine's user; `cortex up` writes one and says so here."""

    @property
    def redis_url(self) -> str:
        """Where the record is, with the password if one is kept in a file. Raises SettingsError."""
        url, file = self._trusting(self.redis.url or DEFAULT_REDIS_URL), self.redis.password_file
        if is_sentinel(url):
            try:
                sentinels(url)
            except BadAddress as error:
                raise SettingsError(f"[redis] url: {error}") from None
        elif not _is_redis(url):  # and what it says is nobody's business: there may be a password in it
            raise SettingsError(
                "[redis] url: is not like redis://USER@HOST:PORT/0, rediss://…, unix://USER@/PATH or "
                "redis+sentinel://USER@HOST:PORT,HOST/MASTER; a password with /, : or @ in it goes into password_file"
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
        """Where the record is, for people to read: without user, password or options."""
        scheme, _, rest = (self.redis.url or DEFAULT_REDIS_URL).partition("?")[0].partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"

    def _trusting(self, url: str) -> str:
        if not self.ca_file or not url.startswith(("rediss://", "rediss+sentinel://")) or "ssl_ca_certs=" in url:
            return url
        given = quote(str(Path(self.ca_file).expanduser()), safe="/")
        return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={given}"

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
    """The settings do not stand. `str()` has a line for everything that is wrong."""


def load(path: Path | None, env: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Read a `cortex.toml` (none: defaults) and the environment. Return the settings and notes for the log.

    Raises SettingsError.
    """
    if path is None:
        return read("", file="cortex.toml", folder=str(Path.cwd()), env=env)
    try:
        text = text_files.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    return read(text, file=str(path), folder=str(path.resolve().parent), env=env)


def read(text: str, *, file: str, folder: str, env: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Read the text of a `cortex.toml`; relative `models_config` is taken from `folder`."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: numbers and nesting have ends
        raise SettingsError(f"{file}: is not TOML: {error}") from None
    notes = []
    if raw.pop("neurons", None) is not None:
        notes.append(f"{file}: [[neurons]] is not needed: agents register themselves")
    lines = TomlLines(text)
    problems: list[str] = []
    values = _checked(raw, Settings, "", lines, file, problems)
    for name, text_value in env.items():
        _override(values, name, text_value, problems)
    if problems:
        raise SettingsError("\n".join(problems))
    settings: Settings = msgspec.convert(values, Settings)
    try:
        models = Path(folder) / Path(settings.models_config).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{file}: models_config: {error}") from None
    return msgspec.structs.replace(settings, models_config=str(models)), notes


def encode_env(settings: Settings) -> dict[str, str]:
    """Return the environment that gives a child process these settings."""
    env = {
        "CORTEX_PRETEND": "true" if settings.pretend else "false",
        "CORTEX_MODELS_CONFIG": settings.models_config,
        "CORTEX_TOKEN_FILE": settings.token_file,
        "CORTEX_CA_FILE": settings.ca_file,
        "CORTEX_LOCAL_KEY_FILE": settings.local_key_file,
    }
    for section in ("gateway", "eviction", "redis", "agent", "hub", "log", "tracing"):
        for key, value in msgspec.to_builtins(getattr(settings, section)).items():
            env[f"CORTEX_{section}__{key}".upper()] = (
                value if isinstance(value, str) else msgspec.json.encode(value).decode()
            )
    return env


def _checked(
    raw: Mapping[str, Any],
    kind: type[Struct],
    table: str,
    lines: TomlLines,
    file: str,
    problems: list[str],
    nth: int = 0,
) -> dict[str, Any]:
    """Check a table key by key, so that one wrong key does not hide the next."""
    hints = get_type_hints(kind, include_extras=True)
    good: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{table}.{key}" if table else key
        line = lines.table(name) or lines.key(table, key, nth)
        place = f"{file}:{line}" if line else file
        before = len(problems)
        if key not in hints:
            problems.append(f"{place}: unknown key '{name}'{did_you_mean(key, hints, cutoff=0)}")
            continue
        good[key] = value
        if (inner := _struct_in(hints[key])) and isinstance(value, dict):
            good[key] = _checked(value, inner, name, lines, file, problems)
        elif inner and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            good[key] = [_checked(v, inner, name, lines, file, problems, n) for n, v in enumerate(value)]
        if len(problems) == before:
            try:
                msgspec.convert(value, hints[key])
            except msgspec.ValidationError as error:
                problems.append(f"{place}: {name}: {error}")
                del good[key]
    return good


def _struct_in(hint: Any) -> type[Struct] | None:
    """Return the struct that a section, or each entry of an array of sections, is to be."""
    inner = (get_args(hint) or (hint,))[0]
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


_SHORT = {"CORTEX_REDIS_URL": "CORTEX_REDIS__URL", "CORTEX_LOG": "CORTEX_LOG__LEVEL"}
_PLAIN = {"models_config", "ca_file", "token_file", "local_key_file", "pretend"}
_OTHER = {"CORTEX_URL", "CORTEX_CONFIG", "CORTEX_API_KEY"}


def _override(values: dict[str, Any], name: str, text: str, problems: list[str]) -> None:
    """Put one environment variable over the file's value; lists and numbers are written as in JSON."""
    path = _SHORT.get(name, name).removeprefix("CORTEX_").lower().split("__")
    if not name.startswith("CORTEX_") or name in _OTHER or (len(path) == 1 and path[0] not in _PLAIN):
        return
    kind: Any = Settings
    for key in path:
        hints = get_type_hints(kind, include_extras=True) if hasattr(kind, "__struct_fields__") else {}
        if key not in hints:
            problems.append(f"{name}: no such setting{did_you_mean(key, hints, cutoff=0)}")
            return
        kind = hints[key]
    try:
        if name == "CORTEX_LOG":
            text = text.lower()
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        value: Any = text if plain is str or "Literal" in str(kind) else msgspec.json.decode(os.fsencode(text))
        msgspec.convert(value, kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        problems.append(f"{name}: {error}")
        return
    table = values
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value


def from_environment(path: Path | None) -> tuple[Settings, list[str]]:
    """Read the settings of this process. `CORTEX_CONFIG` names the file when no path is given."""
    named = os.environ.get("CORTEX_CONFIG")
    return load(path or (Path(named) if named else None), os.environ)


def declared_devices(text: str) -> tuple[DeclaredDevice, ...] | None:
    """Read devices as people write them, "2x24GB,1x80GB"; None when it is not like that. A GB is 1024 MiB here."""
    found: list[DeclaredDevice] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX*]\s*)?(\d{1,4})\s*[gG](?:[iI]?[bB])?\s*", part)
        if match is None or not int(match[2]):
            return None
        device = DeclaredDevice(name=f"pretend {match[2]} GB", vram_mb=int(match[2]) * 1024)
        found += [device] * int(match[1] or 1)
    return tuple(found) or None
