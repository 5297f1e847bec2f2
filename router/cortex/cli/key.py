"""`cortex key`: API keys and their limits.

The commands use the router, like all others. With `--record` they access Redis directly, which allows creating the
first key before a router that needs one is started.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import rich_click as click

from cortex.cli.client import Router
from cortex.cli.durations import Span
from cortex.cli.tables import ago, print_rows, span
from cortex.cli.visible import echo, echo_json
from cortex.platform.api_keys import ApiKey
from cortex.router.api_types import KeyChange, KeyOverlap, KeySecret, NewKey

if TYPE_CHECKING:
    from cortex.cli.key_record import KeyRecord

T = TypeVar("T")


def _backend(record: bool, config: Path | None) -> "KeyRecord | Router":
    if not (record or config):
        return Router()
    from cortex.cli.key_record import KeyRecord

    return KeyRecord(config)


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
