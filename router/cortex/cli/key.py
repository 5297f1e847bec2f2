"""`cortex key`: API keys and their limits.

The commands use the router, like all others. With `--record` they access Redis directly, which allows creating the
first key before a router that needs one is started.
"""

import asyncio
import getpass
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import rich_click as click

from cortex.cli.client import Router
from cortex.cli.durations import Span
from cortex.cli.exits import NOT_FOUND, UNREACHABLE, Failed
from cortex.cli.tables import ago, print_rows, span
from cortex.cli.visible import echo, echo_json
from cortex.platform import settings as settings_
from cortex.platform.api_keys import ApiKey
from cortex.platform.audit import AuditRecord
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.settings import SettingsError
from cortex.router.access.keys import Keys, with_secret, without_digest
from cortex.router.api_types import KeyChange, KeyOverlap, KeySecret, NewKey
from cortex.router.errors import KeyNotFound, RequestError

T = TypeVar("T")


class Record:
    """Keys in Redis, without a router."""

    def __init__(self, config: Path | None) -> None:
        try:
            self._settings, _ = settings_.from_environment(config)
        except SettingsError as error:
            raise Failed(str(error)) from None

    def keys(self, name: str = "") -> tuple[ApiKey, ...]:
        """Return every key, or those of a name."""
        return tuple(map(without_digest, self._with(lambda k: k.named(name) if name else k.all())))

    def new_key(self, request: NewKey) -> KeySecret:
        """Create a key."""
        secret, key = self._with(lambda k: k.make(request), "key new", request.name)
        return with_secret(key, secret)

    def change_key(self, name: str, change: KeyChange) -> tuple[ApiKey, ...]:
        """Change a key."""
        return tuple(map(without_digest, self._with(lambda k: k.change(name, change), "key change", name)))

    def rotate_key(self, name: str, overlap: KeyOverlap) -> KeySecret:
        """Replace a key."""
        secret, key = self._with(lambda k: k.rotate(name, overlap.overlap_s), "key rotate", name)
        return with_secret(key, secret)

    def revoke_key(self, name: str) -> tuple[str, ...]:
        """Delete a key; return the ids that were deleted."""
        return tuple(key.id for key in self._with(lambda k: k.revoke(name), "key revoke", name))

    def _with(self, operation: Callable[[Keys], Awaitable[T]], what: str = "", name: str = "") -> T:
        """Run an operation; with `what`, it is a change, and goes into the audit record."""

        async def run() -> T:
            registry = Registry.of(self._settings)
            try:
                result = await operation(Keys(registry))
                if what:
                    await AuditTrail(registry).append([_audit_record(what, name)])
                return result
            finally:
                await registry.close()

        try:
            return asyncio.run(run())
        except KeyNotFound as error:
            raise Failed(error.message, code=NOT_FOUND, hint="`cortex key ls` lists every key.") from None
        except RequestError as error:
            raise Failed(error.message) from None
        except RecordUnavailable as error:
            raise Failed(str(error), code=UNREACHABLE, hint="Set its URL with CORTEX_REDIS_URL or --config.") from None


def _audit_record(what: str, name: str) -> AuditRecord:
    """Return the entry of a change without a router."""
    address = f"{getpass.getuser()}@{socket.gethostname()}"
    return AuditRecord(
        id=secrets.token_hex(8), at=time.time(), by="record", address=address, what=what, target=name, status=200
    )


def _backend(record: bool, config: Path | None) -> Record | Router:
    return Record(config) if record or config else Router()


_record = click.option("--record", is_flag=True, help="Use Redis directly, without a router.")
_config = click.option("-c", "--config", type=click.Path(path_type=Path), help="Like --record, with this cortex.toml.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def key() -> None:
    """Create, show, rotate and revoke API keys.

    As soon as one exists, every request needs one.
    """


@key.command()
@click.argument("name")
@click.option("--functions", multiple=True, metavar="GLOB", help="Only these functions, such as 'qwen*'; repeatable.")
@click.option("--admin", is_flag=True, help="For everything: inference, reading, changes.")
@click.option("--status", "reads", is_flag=True, help="For reading only: status, functions, hosts; no inference.")
@click.option("--rpm", type=click.IntRange(0), default=0, help="Requests a minute [default: no limit].")
@click.option("--tpm", type=click.IntRange(0), default=0, help="Tokens a minute, in and out [default: no limit].")
@click.option("--concurrent", type=click.IntRange(0), default=0, help="Requests at a time [default: no limit].")
@click.option(
    "--priority",
    type=click.Choice(["low", "normal", "high"]),
    default="normal",
    show_default=True,
    help="Order in queues. low may fill half of a function's queue, high one and a half times.",
)
@click.option("--group", default="", metavar="NAME", help="Keys of a group share cached prompts [default: none].")
@click.option("--expires", "expires_s", type=Span(), default="0s", help="Its lifetime, such as 30d [default: no end].")
@_record
@_config
@_json
def new(
    name: str,
    functions: tuple[str, ...],
    admin: bool,
    reads: bool,
    rpm: int,
    tpm: int,
    concurrent: int,
    priority: str,
    group: str,
    expires_s: int,
    record: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Create a key and print it; it is not stored and cannot be shown again."""
    if admin and reads:
        raise click.UsageError("a key is either --admin or --status")
    request = _body(
        NewKey,
        name=name,
        scope="admin" if admin else "status" if reads else "inference",
        functions=functions,
        rpm=rpm,
        tpm=tpm,
        concurrent=concurrent,
        priority=priority,
        group=group,
        expires_s=expires_s,
    )
    _print_new(_backend(record, config).new_key(request), as_json)


@key.command()
@_record
@_config
@_json
def ls(record: bool, config: Path | None, as_json: bool) -> None:
    """List every key, without secrets."""
    keys = _backend(record, config).keys()
    if as_json:
        echo_json(keys, indent=2)
        return
    if not keys:
        echo("There is no API key: `cortex key new NAME` creates one.")
        return
    rows = [
        (
            k.name,
            k.id,
            k.scope,
            ", ".join(k.functions) or "all",
            *(str(limit or "-") for limit in (k.limits.rpm, k.limits.tpm, k.limits.concurrent)),
            k.priority,
            k.group or "-",
            ago(k.created),
            _end(k),
        )
        for k in keys
    ]
    columns = ("NAME", "ID", "FOR", "FUNCTIONS", "RPM", "TPM", "AT A TIME", "PRIORITY", "GROUP", "MADE", "ENDS")
    print_rows(columns, rows, optional=("GROUP", "PRIORITY", "MADE", "AT A TIME", "FUNCTIONS", "TPM", "RPM"))


@key.command()
@click.argument("name")
@_record
@_config
@_json
def show(name: str, record: bool, config: Path | None, as_json: bool) -> None:
    """Show one key, by name or id, and those it replaced."""
    keys = _backend(record, config).keys(name)
    if as_json:
        echo_json(keys, indent=2)
        return
    for k in keys:
        limits = k.limits
        echo(f"{k.name} ({k.id}), for {k.scope}, made {ago(k.created)}, ends: {_end(k)}")
        echo(f"  functions: {', '.join(k.functions) or 'all'}")
        echo(
            f"  requests a minute: {limits.rpm or 'no limit'} · tokens a minute: {limits.tpm or 'no limit'}"
            f" · at a time: {limits.concurrent or 'no limit'} · priority: {k.priority}"
        )
        echo(f"  cached prompts: {_sharing(k.group)}")
        echo(f"  SHA-256 begins with {k.digest}")


@key.command(name="set")
@click.argument("name")
@click.option("--group", required=True, metavar="NAME", help="The group whose cached prompts it shares; '' for none.")
@_record
@_config
@_json
def set_(name: str, group: str, record: bool, config: Path | None, as_json: bool) -> None:
    """Change a key, by name or id. It takes effect at every router within a second."""
    changed = _backend(record, config).change_key(name, _body(KeyChange, group=group))
    if as_json:
        echo_json(changed, indent=2)
        return
    echo(f"{name}: cached prompts: {_sharing(group)}")


@key.command()
@click.argument("name")
@click.option("--overlap", type=Span(), default="0s", help="How long the old key stays valid, such as 24h.")
@_record
@_config
@_json
def rotate(name: str, overlap: int, record: bool, config: Path | None, as_json: bool) -> None:
    """Replace a key by a new one with the same name, rights and limits."""
    _print_new(_backend(record, config).rotate_key(name, KeyOverlap(overlap_s=overlap)), as_json)


@key.command()
@click.argument("name")
@_record
@_config
@_json
def revoke(name: str, record: bool, config: Path | None, as_json: bool) -> None:
    """Delete a key, by name or id. It becomes invalid at every router."""
    revoked = _backend(record, config).revoke_key(name)
    echo_json({"revoked": revoked}) if as_json else echo(f"{name}: revoked")


def _body(kind: type[T], **values: Any) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"{error} (a name has letters, digits and ._@- in it)") from None


def _print_new(new_key: KeySecret, as_json: bool) -> None:
    if as_json:
        echo_json(new_key)
        return
    echo(f"The key of '{new_key.name}' ({new_key.scope}), shown only this once:", err=True)
    echo(new_key.key)


def _sharing(group: str) -> str:
    return f"shared within the group {group}" if group else "its own"


def _end(key: ApiKey) -> str:
    if not key.expires:
        return "never"
    left = key.expires - time.time()
    text = "expired" if left <= 0 else f"in {span(left)}"
    return f"{text} (rotated)" if key.replaced else text
