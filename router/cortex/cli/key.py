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
from cortex.platform.budget import WARN_SHARE, Budget, Spent, read_budget, share
from cortex.router.api_types import KeyChange, KeyOverlap, KeySecret, NewKey

if TYPE_CHECKING:
    from cortex.cli.redis_keys import RedisKeys

T = TypeVar("T")


class Money(click.ParamType[Budget]):
    """A budget such as 20usd/month, 5000000tokens/month or none."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Budget:
        """Return the budget."""
        try:
            return value if isinstance(value, Budget) else read_budget(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _backend(record: bool, config: Path | None) -> "RedisKeys | Router":
    if not (record or config):
        return Router()
    from cortex.cli.redis_keys import RedisKeys

    return RedisKeys(config)


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
@click.option(
    "--budget", type=Money(), default="none", help="Monthly budget: 20usd/month or 5000000tokens/month [default: none]."
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
    budget: Budget,
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
        budget=budget,
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
    backend = _backend(record, config)
    answer = backend.keys()
    keys, spent = answer.keys, answer.spent
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
            _spending(k.budget, spent.get(k.id, Spent())),
            k.priority,
            k.group or "-",
            ago(k.created),
            _end(k),
        )
        for k in keys
    ]
    columns = (
        "NAME",
        "ID",
        "FOR",
        "FUNCTIONS",
        "RPM",
        "TPM",
        "AT A TIME",
        "BUDGET",
        "PRIORITY",
        "GROUP",
        "MADE",
        "ENDS",
    )
    print_rows(columns, rows, optional=("GROUP", "PRIORITY", "MADE", "AT A TIME", "BUDGET", "FUNCTIONS", "TPM", "RPM"))


@key.command()
@click.argument("name")
@_record
@_config
@_json
def show(name: str, record: bool, config: Path | None, as_json: bool) -> None:
    """Show one key, by name or id, and those it replaced."""
    backend = _backend(record, config)
    answer = backend.keys(name)
    keys, spent = answer.keys, answer.spent
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
        echo(f"  budget: {_spending(k.budget, spent.get(k.id, Spent()), without='no limit')}")
        echo(f"  cached prompts: {_sharing(k.group)}")
        echo(f"  SHA-256 begins with {k.digest}")


@key.command(name="set")
@click.argument("name")
@click.option("--name", "new_name", metavar="NAME", help="A new name. Its id and its usage stay.")
@click.option("--group", metavar="NAME", help="The group whose cached prompts it shares; '' for none.")
@click.option("--budget", type=Money(), help="Monthly budget: 20usd/month, 5000000tokens/month or none.")
@_record
@_config
@_json
def set_(
    name: str,
    new_name: str | None,
    group: str | None,
    budget: Budget | None,
    record: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Change a key, by name or id. It takes effect at every router within a second."""
    if new_name is None and group is None and budget is None:
        raise click.UsageError("specify --name, --group or --budget")
    change = _body(KeyChange, name=new_name, group=group, budget=budget)
    changed = _backend(record, config).change_key(name, change)
    if as_json:
        echo_json(changed, indent=2)
        return
    if new_name is not None:
        echo(f"{name}: is now called {new_name}")
    if group is not None:
        echo(f"{name}: cached prompts: {_sharing(group)}")
    if budget is not None:
        echo(f"{name}: budget: {budget}")


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


def _spending(budget: Budget, spent: Spent, *, without: str = "-") -> str:
    """Return a budget, and how much of it is spent this month."""
    if not budget:
        return without
    part = share(budget, spent)
    warning = "" if part < WARN_SHARE else ", exhausted" if part >= 1 else ", nearly exhausted"
    return f"{budget}: {part:.0%} spent{warning}"


def _sharing(group: str) -> str:
    return f"shared within the group {group}" if group else "its own"


def _end(key: ApiKey) -> str:
    if not key.expires:
        return "never"
    left = key.expires - time.time()
    text = "expired" if left <= 0 else f"in {span(left)}"
    return f"{text} (rotated)" if key.replaced else text
