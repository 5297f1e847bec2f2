"""Variants: functions without instances of their own. The instances of another function, the base, serve them. Pure.

A variant has the base's values and replaces those that belong to a request, such as `sampling`. Everything about the
process, its placement and the number of instances belongs to the base; agents know bases only. So a change of a
variant restarts nothing. Keys that decide how long an instance stays and what is evicted for it are wishes: the
strongest of all functions that share the instances counts. A variant with an `adapter` has LoRA weights of its own:
llama.cpp loads those of all variants when an instance starts, vLLM loads one into a running instance at the first
request for it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from cortex.functions.names import did_you_mean
from cortex.functions.servers import server_of
from cortex.functions.spec import Adapter, Engine, Function

OWN = (
    "id", "variant_of", "adapter", "queue", "start_timeout_s", "request_timeout_s", "vision", "template", "effort",
    "sampling", "chat_template_kwargs", "default_output_tokens", "max_output_tokens", "on_long_prompt",
    "remote_images", "allow", "cost",
)  # fmt: skip
"""The keys that a variant may set for its own requests."""
WISHES = ("min", "warm", "pinned", "baseline", "priority", "idle_after_s", "keep_alive_max_s")
"""The keys that a variant may set as wishes for the shared instances."""
NOT_INHERITED: Mapping[str, Any] = {
    "min": 0,
    "warm": "",
    "pinned": False,
    "baseline": False,
    "native": (),
    "adapter": "",
}
"""The values of keys that a variant does not inherit: the base's own wishes count already, and an answer that a worker
gives in a native dialect contains the base's name."""


WITH_ADAPTERS = frozenset({Engine.LLAMACPP, Engine.VLLM})
"""Engines that load adapters."""


def problems(declared: Iterable[str], base: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of an entry that a variant may not set, and what to do instead."""
    for key in declared:
        if key == "native":
            yield key, "native is not for variants: their requests are translated, so that answers have their name"
        elif key not in (*OWN, *WISHES):
            yield key, f"{key} is set by '{base}', whose instances serve this variant: set it there, or leave it out"


def adapter_problem(adapter: str, base: Function) -> str:
    """Return why the instances of a function cannot have an adapter, or ""."""
    if "," in adapter:
        return f"adapter: '{adapter}' has a comma, which engines read as the end of a path: rename it"
    if base.engine not in WITH_ADAPTERS:
        return f"adapter: engine \"{base.engine}\" of '{base.id}' cannot have adapters: vllm and llamacpp can"
    if base.keep_context:
        return (
            f"adapter: a saved conversation does not say with which adapter it was: remove keep_context of '{base.id}'"
        )
    if base.engine is Engine.LLAMACPP and any(_is_prompt_cache(word) for word in base.args):
        return (
            f"adapter: args of '{base.id}' has --cache-ram, and llama.cpp would answer from the cached prompts of "
            "other adapters: leave it out there"
        )
    if base.server == "llama_cpp.server":
        return f"adapter: the server {base.server} of '{base.id}' does not load adapters: use llama-server or xllamacpp"
    if base.task in ("embed", "rerank"):
        return f"adapter: '{base.id}' has task = \"{base.task}\", and adapters are for functions that generate"
    return ""


def _is_prompt_cache(word: str) -> bool:
    return word.partition("=")[0].replace("_", "-") in ("--cache-ram", "-cram")


def adapter_number(source: str) -> int:
    """Return the number of an adapter in the record of an instance that loads it while it runs: it follows from the
    source, so a router does not mistake the adapter of an earlier entry for that of the present one."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:12], 16)


def adapter_name(id: str, number: int) -> str:
    """Return the name of an adapter at an instance that loads it while it runs. It names the source too, so the adapter
    of a changed entry is loaded beside the earlier one, which may be in use."""
    return f"{id}@{number:012x}"


def as_weights(base: Function, adapter: Adapter) -> Function:
    """Return a function that stands for an adapter's weights, so that they are fetched and stored like any others."""
    return Function(id=adapter.id, engine=base.engine, source=adapter.source, allow_pickle=base.allow_pickle)


def with_adapters(functions: Iterable[Function]) -> list[Function]:
    """Return functions, each followed by those that stand for its adapters' weights (`as_weights`)."""
    return [weights for f in functions for weights in (f, *(as_weights(f, a) for a in f.adapters))]


def base_problem(id: str, base: str, functions: Mapping[str, str], aliases: Mapping[str, Any]) -> str:
    """Return why a function cannot be a variant of `base`, or "". `functions` has the base of every declared id, empty
    for functions with instances of their own."""
    if base == id:
        return "variant_of: a function cannot be a variant of itself: name the function whose instances serve it"
    if base in functions:
        return _chain(id, base, functions) if functions[base] else ""
    if isinstance(function := aliases.get(base), str):
        return f"variant_of: '{base}' is an alias: name its function, '{function}'"
    return f"variant_of: '{base}' is not in the catalogue{did_you_mean(base, functions)}"


def _chain(id: str, base: str, functions: Mapping[str, str]) -> str:
    path = [id, base]
    while (following := functions.get(path[-1])) and following not in path:
        path.append(following)
    if following:
        return f"variant_of: leads in a circle: {' → '.join([*path, following])}"
    return f"variant_of: '{base}' is a variant itself: name its base, '{path[-1]}'"


def complete(base: Function, declared: Mapping[str, Any]) -> Function:
    """Return a variant with the base's values where it declares none."""
    return replace(base, **{**NOT_INHERITED, **declared, "variant_of": base.id})


def with_instances(functions: Mapping[str, Function]) -> dict[str, Function]:
    """Return the functions that have instances of their own."""
    return {id: f for id, f in functions.items() if not f.variant_of}


def sharers(functions: Mapping[str, Function], base: str) -> list[Function]:
    """Return a function and its variants, in the order of the catalogue."""
    return [functions[base], *(f for f in functions.values() if f.variant_of == base)]


def fold(functions: Mapping[str, Function]) -> dict[str, Function]:
    """Return the functions with the wishes for the instances that they share: the strongest of each. `warm` is not
    shared, because `min` contains it already, with runtime overrides."""
    folded = dict(functions)
    for base in {f.variant_of for f in functions.values() if f.variant_of}:
        own, *variants = sharers(functions, base)
        every = (own, *variants)
        shared: dict[str, Any] = {
            "min": min(own.max, max(f.min for f in every)),
            "pinned": any(f.pinned for f in every),
            "baseline": any(f.baseline for f in every),
            "priority": max(f.priority for f in every),
        }
        folded |= {f.id: replace(f, max=own.max, **shared) for f in variants}
        # Each function bounds the `keep_alive` of its own requests.
        longest = {key: max(getattr(f, key) for f in every) for key in ("idle_after_s", "keep_alive_max_s")}
        adapters = tuple(Adapter(f.id, f.adapter) for f in variants if f.adapter and not adapter_problem("", own))
        # Only chat and completions take the number of an adapter.
        native = () if adapters and server_of(own).loads_adapters == "at start" else own.native
        folded[base] = replace(own, **shared, **longest, adapters=adapters, native=native)
    return folded


def weaker_wishes(functions: Mapping[str, Function]) -> Iterator[str]:
    """Yield a note for every wish of a variant that has no effect because the base's wish is stronger."""
    for function in functions.values():
        if base := functions.get(function.variant_of):
            for key in ("idle_after_s", "priority"):
                own, stronger = getattr(function, key), getattr(base, key)
                if own < stronger:
                    yield f"{function.id}: {key} = {own:g} is kept, but that of '{base.id}' is stronger: {stronger:g}"
