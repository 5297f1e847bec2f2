"""How a worker is started: from a spec and a slot to an argv and an environment. Pure; tested by golden argv.

One engine a module. Two rules hold for all of them. What a catalogue says becomes one argument or one variable and
nothing else: no shell ever reads it. And no secret is in an argv, which every user of the machine can read: the
worker's API key travels in the environment, or in a file that only its user may open.
"""

from typing import assert_never

from cortex.functions import arguments
from cortex.functions.launch import command, fake, llamacpp, vllm
from cortex.functions.launch.context import CannotLaunch, Launch, LaunchContext
from cortex.functions.spec import Engine, Function

__all__ = ["CannotLaunch", "Launch", "LaunchContext", "launch"]


def launch(function: Function, slot: LaunchContext) -> Launch:
    """Return the command that serves `function` in `slot`. Raises CannotLaunch when the engine is not there, or an
    argument is one that cortex gives itself: the worker would listen elsewhere."""
    for what in arguments.duplicates(function):
        raise CannotLaunch(f"args: {what}")
    match function.engine:
        case Engine.VLLM:
            return vllm.launch(function, slot)
        case Engine.LLAMACPP:
            return llamacpp.launch(function, slot)
        case Engine.COMMAND:
            return command.launch(function, slot)
        case Engine.FAKE:
            return fake.launch(function, slot)
        case _:
            assert_never(function.engine)
