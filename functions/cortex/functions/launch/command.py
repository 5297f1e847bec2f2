"""Any program that serves OpenAI's dialect on a port, as the catalogue writes its command line.

`command` is an argv, one string an argument, with places to fill in: `{host}` and `{port}` to listen on, `{model}`
the name it has to serve under, `{source}` the weights, `{devices}` the UUIDs of its GPUs, `{key_file}` a file with
the API key it should ask for. No shell reads any of it.
"""

import re
from collections.abc import Mapping

from cortex.functions.launch.context import Launch, LaunchContext, visible
from cortex.functions.spec import Function

PLACES = ("port", "host", "model", "source", "devices", "key_file")
_PLACE = re.compile(r"\{([a-z_]+)\}")


def unknown_places(command: tuple[str, ...]) -> list[str]:
    """Return what is written like a place to fill in and is none."""
    return sorted({name for word in command for name in _PLACE.findall(word) if name not in PLACES})


def wants(command: tuple[str, ...], place: str) -> bool:
    """Whether a command has a place for something."""
    return any(place in _PLACE.findall(word) for word in command)


def launch(function: Function, slot: LaunchContext) -> Launch:
    """Return the command with its places filled in. A program that asks for no key serves without one."""
    values = {
        "port": str(slot.port),
        "host": slot.host,
        "model": function.id,
        "source": slot.weights or function.weights,
        "devices": ",".join(slot.devices),
        "key_file": slot.key_file,
    }
    return Launch(
        argv=(*(_filled(word, values) for word in function.command), *function.args),
        env={**function.env, **visible(slot), "CORTEX_WORKER_KEY": slot.key},
        health_path=function.health_path,
        server="command",
        files={slot.key_file: slot.key} if wants(function.command, "key_file") else {},
    )


def _filled(word: str, values: Mapping[str, str]) -> str:
    # In one pass: what is filled in is not looked at again.
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), word)
