"""The fake engine: a real process that pretends to be an engine."""

from cortex.functions.launch.context import Launch, LaunchContext, tool, visible
from cortex.functions.spec import Function


def launch(function: Function, slot: LaunchContext) -> Launch:
    """Return the command. Its memory is what it writes into a file of its own."""
    return Launch(
        argv=(
            *tool("fake", slot),
            "--model", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            *function.args,
        ),
        env={
            **function.env,
            **visible(slot),
            "CORTEX_WORKER_KEY": slot.key,
            **({"CORTEX_FAKE_MEMORY_FILE": slot.scratch} if slot.scratch else {}),
        },
        server="fake",
    )  # fmt: skip
