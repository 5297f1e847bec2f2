"""The fake engine: a real process without a model."""

from cortex.functions.launch.context import Launch, LaunchContext, tool, visible
from cortex.functions.launch.modes import StartMode, Trick
from cortex.functions.spec import Function

FULL_LOAD = "--full-load-s"
"""The option of a fake engine that takes this long for a full start. Without it, it has one set of settings."""


def fast_tricks(function: Function) -> tuple[Trick, ...]:
    """Return the tricks of a fast start."""
    return (Trick.EAGER,) if any(arg.partition("=")[0] == FULL_LOAD for arg in function.args) else ()


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command. It reports its pretended memory in its scratch file."""
    fast = fast_tricks(function) if context.mode is StartMode.FAST else ()
    tricks = tuple(t for t in fast if t not in context.tricks_off)
    return Launch(
        argv=(
            *tool("fake", context),
            "--model", function.id,
            "--host", context.host,
            "--port", str(context.port),
            *(("--enforce-eager",) if Trick.EAGER in tricks else ()),
            *function.args,
        ),
        env={
            **function.env,
            **visible(context),
            "CORTEX_WORKER_KEY": context.key,
            **({"CORTEX_CONTROL_KEY": context.control_key} if context.control_key else {}),
            **({"CORTEX_FAKE_MEMORY_FILE": context.scratch} if context.scratch else {}),
        },
        server="fake",
        tricks=tricks,
    )  # fmt: skip
