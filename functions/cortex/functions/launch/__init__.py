"""Builds a worker's arguments and environment from a spec and a context. Pure; tests compare whole command lines.

Each engine has a module. Two rules hold for all: a value of the catalogue becomes exactly one argument or variable and
no shell reads it; and no secret is in an argv, which every user of the machine can read. A worker's API key is passed
in its environment, or in a file that only its user can read.
"""

from typing import assert_never

from cortex.functions import arguments
from cortex.functions.launch import command, fake, llamacpp, vllm
from cortex.functions.launch.context import CannotLaunch, Launch, LaunchContext
from cortex.functions.launch.modes import StartMode, Trick
from cortex.functions.spec import Engine, Function

__all__ = ["CannotLaunch", "Launch", "LaunchContext", "StartMode", "Trick", "fast_tricks", "launch"]


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command that serves `function`. Raises CannotLaunch when the host lacks the engine, or an argument is
    one that cortex gives itself: the worker would listen elsewhere."""
    for what in arguments.duplicates(function):
        raise CannotLaunch(f"args: {what}")
    match function.engine:
        case Engine.VLLM:
            return vllm.launch(function, context)
        case Engine.LLAMACPP:
            return llamacpp.launch(function, context)
        case Engine.COMMAND:
            return command.launch(function, context)
        case Engine.FAKE:
            return fake.launch(function, context)
        case _:
            assert_never(function.engine)


def fast_tricks(function: Function, version: str = "") -> tuple[Trick, ...]:
    """Return the tricks of a fast start on a GPU, best first; none where the engine, in this version and with the
    function's arguments, has one set of settings."""
    match function.engine:
        case Engine.VLLM:
            return vllm.fast_tricks(function, version)
        case Engine.FAKE:
            return fake.fast_tricks(function)
        case _:
            return ()
