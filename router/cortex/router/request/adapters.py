"""The adapter of a variant in a request to an instance that serves its base too.

vLLM knows an adapter by the variant's name in `model`. llama.cpp has a number for each, and every request says which it
wants: one of the base says none, since what a server would apply otherwise is not the same in all releases.
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
    """Raise AdapterFailed when an instance has not the adapter of a variant."""
    function = target.function
    if not target.has_adapter or function.id in instance.adapters:
        return
    problem = instance.adapter_problems.get(function.id, "its instance was started without it")
    public = f"'{function.id}' cannot be served: its adapter is not loaded"
    raise AdapterFailed(f"'{function.id}' cannot be served: {problem}", public=public + SEE_WHY)


def with_adapter(body: bytes, target: Target, instance: Instance) -> bytes:
    """Return the body of a request with the adapter that it is for, where the server takes a number."""
    if not instance.adapters or instance.server not in LLAMA_SERVERS:
        return body
    if not target.has_adapter:
        return with_fields(body, b'"lora":[{"id":0,"scale":0.0}]')  # an empty list counts as none
    return with_fields(body, b'"lora":[{"id":%d,"scale":1.0}]' % instance.adapters[target.function.id])
