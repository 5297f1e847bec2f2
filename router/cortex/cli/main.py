"""`cortex`: one command line for operators."""

import os
import signal
import sys
from types import FrameType

import rich_click as click

from cortex.cli import exits
from cortex.cli.lazy import LazyGroup
from cortex.cli.visible import echo, write_any_text
from cortex.platform import bounded_resolver
from cortex.platform.settings import SettingsError

click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.GROUP_ARGUMENTS_OPTIONS = True

COMMANDS = {
    "up": "cortex.cli.up:up",
    "router": "cortex.cli.daemons:router",
    "serve": "cortex.cli.daemons:serve",
    "agent": "cortex.cli.daemons:agent",
    "jobs": "cortex.cli.jobs:jobs",
    "check": "cortex.cli.check:check",
    "import": "cortex.cli.import_models:import_models",
    "fn": "cortex.cli.fn:fn",
    "host": "cortex.cli.host:host",
    "gpu": "cortex.cli.host:gpu",
    "key": "cortex.cli.key:key",
    "weights": "cortex.cli.weights:weights",
    "req": "cortex.cli.req:req",
    "status": "cortex.cli.status:status",
    "top": "cortex.cli.top:top",
    "why": "cortex.cli.decisions:why",
    "events": "cortex.cli.decisions:events",
    "usage": "cortex.cli.usage:usage",
    "audit": "cortex.cli.audit:audit",
    "replay": "cortex.cli.replay:replay",
    "call": "cortex.cli.call:call",
    "doctor": "cortex.cli.doctor:doctor",
    "completion": "cortex.cli.completion:completion",
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


def main() -> None:
    """Run the command line. Files that it and its child processes create are private by default."""
    os.umask(0o077)
    write_any_text()
    bounded_resolver.install()
    signal.signal(signal.SIGINT, _interrupt)  # servers install their own handlers
    try:
        cli.main(prog_name="cortex", standalone_mode=True)
    except (exits.Failed, SettingsError) as failed:
        echo(f"cortex: {failed}", err=True)
        sys.exit(failed.exit_code if isinstance(failed, exits.Failed) else exits.FAILED)
    except OSError as error:
        if not exits.is_not_writable(error):
            raise
        echo(f"cortex: cannot write {error.filename}: {error.strerror}\n{exits.WRITABLE}", err=True)
        sys.exit(exits.FAILED)
    except (Interrupted, KeyboardInterrupt):
        os._exit(exits.INTERRUPTED)
