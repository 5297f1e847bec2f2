"""Reads `cortex.toml`, overridden by environment variables, and checks it once when a process starts.

A file that does not parse, an unknown key or an invalid value stops the process with the line and the nearest key.
`CORTEX_GATEWAY__LISTEN` overrides `[gateway] listen`, and so on for every key; `CORTEX_REDIS_URL` is short for
`CORTEX_REDIS__URL`. No other module reads the environment, except `systemd.py` for the variables of a service manager.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from cortex.functions.names import did_you_mean
from cortex.functions.toml_lines import TomlLines
from cortex.platform import text_files
from cortex.platform.settings import ORIGIN, REDIS_PREFIX, ROOT_PATH, DeclaredDevice, Settings, SettingsError

_FORMS = {
    REDIS_PREFIX: "at most 40 letters, digits, `_` and `.`",
    ORIGIN: "an origin such as `https://app.example`, without a path, or `*`",
    ROOT_PATH: "a path such as `/cortex`, without a slash at the end, which is none of the router's own",
}
_SHORT = {"CORTEX_REDIS_URL": "CORTEX_REDIS__URL", "CORTEX_LOG": "CORTEX_LOG__LEVEL"}
_PLAIN = {"models_config", "ca_file", "token_file", "local_key_file", "pretend"}
_OTHER = {"CORTEX_URL", "CORTEX_CONFIG", "CORTEX_API_KEY"}


def from_environment(path: Path | None) -> tuple[Settings, list[str]]:
    """Read the settings of this process. `CORTEX_CONFIG` names the file when no path is given."""
    default = os.environ.get("CORTEX_CONFIG")
    return load(path or (Path(default) if default else None), os.environ)


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
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, numbers that are too long, nesting too deep
        raise SettingsError(f"{file}: is not TOML: {error}") from None
    notes = []
    if raw.pop("neurons", None) is not None:
        notes.append(f"{file}: [[neurons]] is not needed: agents register themselves")
    lines = TomlLines(text)
    problems: list[str] = []
    values = _check(raw, Settings, "", lines, file, problems)
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
    """Return the environment variables that pass these settings to a child process."""
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


def _check(
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
    valid: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{table}.{key}" if table else key
        line = lines.table(name) or lines.key(table, key, nth)
        place = f"{file}:{line}" if line else file
        before = len(problems)
        if key not in hints:
            problems.append(f"{place}: unknown key '{name}'{did_you_mean(key, hints, cutoff=0)}")
            continue
        valid[key] = value
        if (inner := _struct_in(hints[key])) and isinstance(value, dict):
            valid[key] = _check(value, inner, name, lines, file, problems)
        elif inner and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            valid[key] = [_check(v, inner, name, lines, file, problems, n) for n, v in enumerate(value)]
        if len(problems) == before:
            try:
                msgspec.convert(value, hints[key])
            except msgspec.ValidationError as error:
                problems.append(f"{place}: {name}: {_reason(error)}")
                del valid[key]
    return valid


def _reason(error: Exception) -> str:
    """Return what is wrong with a value, with a pattern in words."""
    text = str(error)
    for pattern, form in _FORMS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", form)
    return text


def _struct_in(hint: Any) -> type[Struct] | None:
    """Return the struct of a section, or of each entry of an array of sections."""
    inner = (get_args(hint) or (hint,))[0]
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _override(values: dict[str, Any], name: str, text: str, problems: list[str]) -> None:
    """Override the file's value with an environment variable, in which lists and numbers are JSON."""
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
        problems.append(f"{name}: {_reason(error)}")
        return
    table = values
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value


def declared_devices(text: str) -> tuple[DeclaredDevice, ...] | None:
    """Parse devices such as "2x24GB,1x80GB"; None for anything else. A GB counts as 1024 MiB."""
    devices: list[DeclaredDevice] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX*]\s*)?(\d{1,4})\s*[gG](?:[iI]?[bB])?\s*", part)
        if match is None or not int(match[2]):
            return None
        device = DeclaredDevice(name=f"pretend {match[2]} GB", vram_mb=int(match[2]) * 1024)
        devices += [device] * int(match[1] or 1)
    return tuple(devices) or None
