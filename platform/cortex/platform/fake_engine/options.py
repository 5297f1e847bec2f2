"""The command line, made from the structs it fills: an option exists once, with its type, default and help.

Nothing is read from the environment here; the key never appears in an argument list.
"""

import argparse
import typing
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex.platform.fake_engine.script import BadScript, Script, from_words

HELP = """\
A worker process without a model, for proving schedulers, routers and operators.

It is healthy when GET /health answers 200 and GET /v1/models names the model. All options under "script" can
also be changed while it runs: POST /fake with a JSON object of them (null is the default again); PUT /fake
the same, but from the options of the start, and with the counters at zero; GET /fake shows the script, the
counters and the last requests. All but /health and /metrics want `Authorization: Bearer $CORTEX_WORKER_KEY`
if that variable is set.
"""
EXAMPLES = """\
examples:
  --port 8000 --model tiny --load-s 30 --tokens 200 --tps 40     a plausible small model
  ... --load-s 5 --crash-on-load --crash-message "torch.OutOfMemoryError: CUDA out of memory."
  ... --crash-after 3 --crash-mid-stream 10                      dies ten tokens into its fourth answer
  ... --ignore-term --leave-grandchild                           only a group kill stops it
  ... --shape llama --script captured.jsonl                      replays what was captured
"""
VALUE_MAY_BE_LEFT_OUT = {"crash_on_load": "1"}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed at the start, because it cannot be taken back."""

    model: Annotated[str, Meta(description="the model it serves, in every answer")]
    port: Annotated[int, Meta(ge=0, le=65535, description="0 takes a free one and logs it")]
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    leave_grandchild: Annotated[
        bool, Meta(description="start a sleeping process in its own process group, and never stop it")
    ] = False
    leave_daemon: Annotated[
        bool, Meta(description="the same, but in a session of its own and without a living parent")
    ] = False
    hold_stdout: Annotated[bool, Meta(description="those two keep its stdout and stderr open after it is gone")] = False


def parse(argv: Sequence[str] | None = None) -> tuple[Place, Script]:
    """The place and the script that `argv` asks for; exits with 2 and the option's name if it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m cortex.platform.fake_engine",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add(parser.add_argument_group("fixed at the start"), Place)
    _add(parser.add_argument_group("script"), Script)
    words = vars(parser.parse_args(argv))
    placed = {name: words.pop(name) for name in Place.__struct_fields__ if name in words}
    try:
        return msgspec.convert(placed, Place, strict=False), from_words(words)
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
            nargs="?" if field.name in VALUE_MAY_BE_LEFT_OUT else None,
            const=VALUE_MAY_BE_LEFT_OUT.get(field.name),
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
