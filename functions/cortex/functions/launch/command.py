"""Any program that serves OpenAI's dialect on a port, with its command line from the catalogue.

`command` is an argv, one string per argument, with placeholders: `{host}` and `{port}` to listen on, `{model}` the name
to serve, `{source}` the weights, `{devices}` the UUIDs of its GPUs, `{key_file}` a file with the API key to require. No
shell reads any of it.
"""

import re
from collections.abc import Mapping

from cortex.functions.launch.context import Launch, LaunchContext, visible
from cortex.functions.servers import COMMAND
from cortex.functions.spec import Function

PLACEHOLDERS = ("port", "host", "model", "source", "devices", "key_file")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def unknown_placeholders(command: tuple[str, ...]) -> list[str]:
    """Return the names of placeholders that do not exist."""
    return sorted({name for word in command for name in _PLACEHOLDER.findall(word) if name not in PLACEHOLDERS})


def has_placeholder(command: tuple[str, ...], name: str) -> bool:
    """Return whether a command has a placeholder."""
    return any(name in _PLACEHOLDER.findall(word) for word in command)


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command with its placeholders replaced. A program without `{key_file}` need not check a key."""
    values = {
        "port": str(context.port),
        "host": context.host,
        "model": function.name_at_worker,
        "source": context.weights or function.weights,
        "devices": ",".join(context.devices),
        "key_file": context.key_file,
    }
    return Launch(
        argv=(*(_replace(word, values) for word in function.command), *function.args),
        env={**function.env, **visible(context), "CORTEX_WORKER_KEY": context.key},
        health_path=function.health_path,
        served_name=function.served_name,
        server=COMMAND,
        files={context.key_file: context.key} if has_placeholder(function.command, "key_file") else {},
    )


def _replace(word: str, values: Mapping[str, str]) -> str:
    # In one pass, so that placeholders in inserted values are not replaced.
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word)
