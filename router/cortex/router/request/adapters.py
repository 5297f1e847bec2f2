"""Select the adapter of a variant in a request to an instance that the variant shares with its base.

vLLM knows an adapter by the variant's name in `model`. llama.cpp numbers its adapters, and every request names one;
a request for the base disables them all, because what a server applies by default differs between releases.
"""

from cortex.functions.launch.llamacpp import ORDER as LLAMA_SERVERS
from cortex.platform.record import Instance
from cortex.router.errors import SEE_WHY, AdapterFailed
from cortex.router.live_catalogue import Target
from cortex.router.request.prompt_cache import with_fields


def able(target: Target, ready: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """Return the instances that can serve a variant; all of them if none has its adapter, so that `check_adapter` gives
    the reason of one."""
    if not target.has_adapter:
        return ready
    return tuple(i for i in ready if target.function.id in i.adapters) or ready


def check_adapter(target: Target, instance: Instance) -> None:
    """Raise AdapterFailed if an instance has not loaded the adapter of a variant."""
    function = target.function
    if not target.has_adapter or function.id in instance.adapters:
        return
    problem = instance.adapter_problems.get(function.id, "its instance was started without it")
    public = f"'{function.id}' cannot be served: its adapter is not loaded"
    raise AdapterFailed(f"'{function.id}' cannot be served: {problem}", public=public + SEE_WHY)


def with_adapter(body: bytes, target: Target, instance: Instance) -> bytes:
    """Return the body of a request with the number of its adapter, if the server takes numbers."""
    if not instance.adapters or instance.server not in LLAMA_SERVERS:
        return body
    if not target.has_adapter:
        return with_fields(body, b'"lora":[{"id":0,"scale":0.0}]')  # llama.cpp ignores an empty list
    return with_fields(body, b'"lora":[{"id":%d,"scale":1.0}]' % instance.adapters[target.function.id])
