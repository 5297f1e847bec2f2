"""The command line, generated from the structs that it fills, which have each option's type, default and help.

This module does not read the environment; the key is never an argument.
"""

import argparse
import typing
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex.platform.fake_engine.script import BadScript, Script, from_words

HELP = """\
A worker process without a model, for tests of schedulers, routers and operators.

It is healthy when GET /health answers 200 and GET /v1/models lists the model. All options under "script" can be
changed while it runs: POST /fake takes a JSON object of options (null restores the default); PUT /fake does the
same, but starts from the initial options and resets the counters; GET /fake shows the script, the counters and
the last requests. All paths but /health and /metrics require `Authorization: Bearer $CORTEX_WORKER_KEY` if that
variable is set; /sleep, /wake_up and /is_sleeping require `$CORTEX_CONTROL_KEY` instead, if that one is set too.
"""
EXAMPLES = """\
examples:
  --port 8000 --model tiny --load-s 30 --tokens 200 --tps 40     a plausible small model
  ... --load-s 5 --crash-on-load --crash-message "torch.OutOfMemoryError: CUDA out of memory."
  ... --crash-after 3 --crash-mid-stream 10                      dies ten tokens into its fourth answer
  ... --ignore-term --leave-grandchild                           only a group kill stops it
  ... --shape llama --script captured.jsonl                      replays captured streams
"""
OPTIONAL_VALUES = {"crash_on_load": "1"}
"""Options that may have no value, with the value that they then get."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Options that are fixed at the start."""

    model: Annotated[str, Meta(description="the model it serves, as in every answer")]
    port: Annotated[int, Meta(ge=0, le=65535, description="0 takes a free port and logs it")]
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    leave_grandchild: Annotated[
        bool, Meta(description="start a sleeping process in its own process group, and never stop it")
    ] = False
    leave_daemon: Annotated[bool, Meta(description="the same, but in its own session and without a living parent")] = (
        False
    )
    hold_stdout: Annotated[bool, Meta(description="those two keep its stdout and stderr open after it exits")] = False


def parse(argv: Sequence[str] | None = None) -> tuple[Setup, Script]:
    """Parse the command line. Exits with 2 and the option's name if it is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m cortex.platform.fake_engine",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add(parser.add_argument_group("fixed at the start"), Setup)
    _add(parser.add_argument_group("script"), Script)
    words = vars(parser.parse_args(argv))
    fixed = {name: words.pop(name) for name in Setup.__struct_fields__ if name in words}
    try:
        return msgspec.convert(fixed, Setup, strict=False), from_words(words)
    except (msgspec.ValidationError, BadScript) as error:
        parser.error(str(error))


def _add(group: argparse._ArgumentGroup, struct: type[msgspec.Struct]) -> None:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        option = f"--{field.name.replace('_', '-')}"
        kind, *metas = typing.get_args(hints[field.name])
        text = metas[-1].description.replace("%", "%%")
        if kind is bool:
            group.add_argument(option, action="store_true", help=text)
            continue
        if field.default not in (None, "", msgspec.NODEFAULT):
            text += f" ({field.default})"
        choices = _literals(kind)
        group.add_argument(
            option,
            help=text,
            required=field.required,
            choices=choices,
            metavar=None if choices else _unit(field.name, kind),
            nargs="?" if field.name in OPTIONAL_VALUES else None,
            const=OPTIONAL_VALUES.get(field.name),
        )


def _literals(kind: object) -> list[str] | None:
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is Literal:
            return list(typing.get_args(part))
    return None


def _unit(name: str, kind: object) -> str:
    if name.endswith("_s"):
        return "SECONDS"
    if "_mb" in name:
        return "MB"
    return "TEXT" if str in (kind, *typing.get_args(kind)) else "N"
