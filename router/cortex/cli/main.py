"""`cortex`: one command line for operators."""

import os
import signal
import sys
from types import FrameType

import rich_click as click

from cortex.cli import exits
from cortex.cli.lazy import Later, LazyGroup
from cortex.cli.visible import echo, write_any_text
from cortex.platform import bounded_resolver
from cortex.platform.process import garbage, unused_packages

click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.GROUP_ARGUMENTS_OPTIONS = True

COMMANDS = {
    "up": Later("cortex.cli.up:up", "Run everything on this machine: Redis, an agent, a job worker and a router."),
    "router": Later("cortex.cli.daemons:router", "Run a router, which serves the clients' URL."),
    "serve": Later("cortex.cli.daemons:serve", "Run a router (the command's earlier name).", hidden=True),
    "agent": Later("cortex.cli.daemons:agent", "Run this host's agent, which starts, watches and stops the workers."),
    "jobs": Later(
        "cortex.cli.jobs:jobs",
        "Run this host's job worker, which fetches weights; or, with a command, show and cancel downloads.",
    ),
    "check": Later("cortex.cli.check:check", "Check a catalogue: list every problem, and settings without effect."),
    "import": Later(
        "cortex.cli.import_models:import_models",
        "Print a models.toml for the models that another tool has on this machine.",
    ),
    "fn": Later("cortex.cli.fn:fn", "Show functions; warm and cool them."),
    "host": Later("cortex.cli.host:host", "Show hosts; cordon, uncordon and drain them."),
    "gpu": Later("cortex.cli.host:gpu", "Show devices and the use of their memory."),
    "key": Later("cortex.cli.key:key", "Create, show, rotate and revoke API keys."),
    "weights": Later("cortex.cli.weights:weights", "Show the weights on the hosts' disks; remove unused ones."),
    "kept": Later("cortex.cli.contexts:contexts", "Show the conversations that hosts have saved; remove them."),
    "batch": Later("cortex.cli.batch:batch", "Show, cancel and submit batches."),
    "req": Later("cortex.cli.req:req", "Show live requests; cancel one."),
    "status": Later("cortex.cli.status:status", "Show the router's health, the hosts and the warm functions."),
    "top": Later("cortex.cli.top:top", "Watch the fleet: devices, functions, requests."),
    "why": Later(
        "cortex.cli.decisions:why",
        "Explain the state of a function, or the course of a request, by its decisions and their inputs.",
    ),
    "events": Later("cortex.cli.decisions:events", "Show the latest decisions of agents, routers and operators."),
    "usage": Later(
        "cortex.cli.usage:usage", "Show requests, tokens, cold starts, cost, and the time and energy of GPUs."
    ),
    "audit": Later(
        "cortex.cli.audit:audit", "Show what operators did: who, what, to what, from where, and how it ended."
    ),
    "replay": Later(
        "cortex.cli.replay:replay",
        "Show what would have happened with another catalogue or other hosts, beside what did.",
    ),
    "call": Later("cortex.cli.call:call", "Send one prompt to a function and stream its answer."),
    "doctor": Later(
        "cortex.cli.doctor:doctor",
        "Check settings, catalogue, Redis, agents, engines, clocks, ports, disks and permissions.",
    ),
    "completion": Later(
        "cortex.cli.completion:completion",
        "Print the completion script for a shell, which also completes functions and hosts.",
    ),
}


@click.group(cls=LazyGroup, later=COMMANDS, epilog=exits.HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cortex", prog_name="cortex")
def cli() -> None:
    """Serve language models from your own hosts, each started by the first request that needs it.

    Begin with `cortex up`: it runs everything on this machine and prints a request to try.
    """


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which click turns into "Aborted!" and a general exit code."""


def _interrupt(_: int, __: FrameType | None) -> None:
    raise Interrupted


def _settings_error() -> type[Exception]:
    """Return SettingsError, imported only when a command has raised an exception."""
    from cortex.platform.settings import SettingsError

    return SettingsError


def main() -> None:
    """Run the command line. Files that it and its child processes create are private by default."""
    garbage.collect_seldom()
    os.umask(0o077)
    write_any_text()
    bounded_resolver.install()
    unused_packages.leave_out()
    signal.signal(signal.SIGINT, _interrupt)  # servers install their own handlers
    try:
        _run()
    except (Interrupted, KeyboardInterrupt):
        os._exit(exits.INTERRUPTED)


def _run() -> None:
    try:
        cli.main(prog_name="cortex", standalone_mode=True)
    except exits.Failed as failed:
        echo(f"cortex: {failed}", err=True)
        sys.exit(failed.exit_code)
    except BrokenPipeError:  # the help of a group: click exits on all other output
        os._exit(exits.FAILED)
    except _settings_error() as error:
        echo(f"cortex: {error}", err=True)
        sys.exit(exits.FAILED)
    except OSError as error:
        if not exits.is_not_writable(error):
            raise
        echo(f"cortex: cannot write {error.filename}: {error.strerror}\n{exits.WRITABLE}", err=True)
        sys.exit(exits.FAILED)
