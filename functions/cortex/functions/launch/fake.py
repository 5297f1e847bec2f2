"""The fake engine: a real process without a model."""

from cortex.functions.launch.context import Launch, LaunchContext, tool, visible
from cortex.functions.spec import Function


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command. It reports its pretended memory in its scratch file."""
    return Launch(
        argv=(
            *tool("fake", context),
            "--model", function.id,
            "--host", context.host,
            "--port", str(context.port),
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
    )  # fmt: skip
