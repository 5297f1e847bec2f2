"""A command imports what it needs: most of the time of a short one is its imports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from cortex.cli.lazy import LazyGroup
from cortex.cli.main import cli
from tests.support.stack import free_port

SERVERS = {
    "aiohttp",
    "asyncio",
    "huggingface_hub",
    "litestar",
    "prometheus_client",
    "redis",
    "rq",
    "structlog",
    "uvicorn",
}
CLIENTS = {"httpx", "numpy", "psutil", "rich"}
SCRIPT = """
import json, sys
from cortex.cli.main import main
try:
    main()
finally:
    print(json.dumps([name for name, module in sys.modules.items() if module]), file=sys.stderr)
"""


def imports(*arguments: str) -> set[str]:
    """Return the modules that a process has when it ends."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "CORTEX_URL": f"http://127.0.0.1:{free_port()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return set(json.loads(run.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["fn", "ls"], ["host", "ls"], ["key", "ls"], ["req", "ls"], ["usage"], ["audit"]],
    ids=" ".join,
)
def test_a_command_that_asks_a_router_imports_no_other_client_and_no_server(arguments: list[str]) -> None:
    modules = imports(*arguments)

    assert "cortex.cli.client" in modules
    assert not modules & (SERVERS | CLIENTS | {"cortex.platform.settings", "cortex.platform.registry"})


def test_the_list_of_commands_imports_none_of_them() -> None:
    modules = imports("--help")

    assert {m for m in modules if m.startswith("cortex.cli.")} == {
        "cortex.cli.exits", "cortex.cli.lazy", "cortex.cli.main", "cortex.cli.visible",
    }  # fmt: skip
    assert not modules & SERVERS


def lazy_groups(group: click.Group) -> Iterator[LazyGroup]:
    if isinstance(group, LazyGroup):
        yield group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.load(context, name) if isinstance(group, LazyGroup) else group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from lazy_groups(command)


@pytest.mark.parametrize("group", list(lazy_groups(cli)), ids=lambda group: str(group.name))
def test_a_list_of_commands_shows_the_first_sentence_of_the_help_of_each(group: LazyGroup) -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        listed, command = group.get_command(context, name), group.load(context, name)

        assert listed is not None
        assert command is not None
        assert listed.get_short_help_str(1000) == command.get_short_help_str(1000)
        assert listed.hidden == command.hidden
