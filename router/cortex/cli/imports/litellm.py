"""LiteLLM's configuration: `model_list`, of which cortex can run what a server on the own machines serves."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from cortex.cli.imports.draft import Draft, Entry
from cortex.cli.imports.local_weights import LocalWeights

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_TIMEOUTS = ("timeout", "request_timeout")
_READ = {"model", "custom_llm_provider", "max_tokens", "input_cost_per_token", "output_cost_per_token", *_TIMEOUTS}
_HARMLESS = {"api_base", "base_url", "drop_params", "stream_timeout", "id", "db_model", "mode", "base_model"}
"""Of a server that cortex replaces."""
_WHY = {
    "general_settings": "keys are made with `cortex key new`",
    "environment_variables": "`env` of a function sets variables of its worker",
}
_LIMITS = ("rpm", "tpm", "max_parallel_requests")

Local = Callable[[str], Entry | None]
"""Returns the entry of a model in another tool's store."""


def read(config: Mapping[str, Any], origin: str, weights: LocalWeights, ollama: Local, lm_studio: Local) -> Draft:
    """Return the draft of a configuration. `ollama` and `lm_studio` find models in the stores of these tools."""
    draft = Draft(origin)
    for key in config.keys() - {"model_list", "router_settings"}:
        draft.notes.append(f"{key} is not carried over" + (f": {_WHY[key]}" if key in _WHY else ""))
    models: dict[str, str] = {}
    for item in config.get("model_list") or ():
        parameters, info = _mapping(_mapping(item).get("litellm_params")), _mapping(_mapping(item).get("model_info"))
        name, target = str(_mapping(item).get("model_name", "")), str(parameters.get("model", ""))
        if name in draft.entries:
            _add_deployment(draft.entries[name], target, same=models[name] == target)
            continue
        entry = _entry(name, target, parameters, weights, ollama, lm_studio)
        if isinstance(entry, str):
            draft.notes.append(f"{name}: left out: {entry}")
            continue
        _read_parameters(entry, parameters, info)
        draft.add(entry)
        models[name] = target
    settings = _mapping(config.get("router_settings"))
    for alias, target in _mapping(settings.get("model_group_alias")).items():
        draft.alias(str(alias), str(target.get("model") if isinstance(target, Mapping) else target))
    for key in settings.keys() - {"model_group_alias"}:
        draft.notes.append(f"router_settings.{key} is not carried over")
    return draft


def _add_deployment(entry: Entry, target: str, *, same: bool) -> None:
    """Count another deployment of the same model as one more instance."""
    if same:
        entry.keys["max"] = entry.keys.get("max", 1) + 1
    else:
        entry.notes.append(f"another deployment with the model {target} is left out: a function has one model")


def _entry(
    name: str, target: str, parameters: Mapping[str, Any], weights: LocalWeights, ollama: Local, lm_studio: Local
) -> Entry | str:
    """Return the entry of a deployment, or why cortex cannot run it."""
    provider, _, model = target.partition("/")
    if other := parameters.get("custom_llm_provider"):
        provider, model = str(other), target
    if "*" in name or "*" in target:
        return "it stands for many models, and a catalogue names each"
    match provider:
        case "ollama" | "ollama_chat":
            entry = ollama(model)
            return replace(entry, id=name) if entry else f"Ollama on this machine has no {model}"
        case "lm_studio":
            entry = lm_studio(model)
            return replace(entry, id=name) if entry else f"LM Studio on this machine has no {model}"
        case "hosted_vllm" | "vllm":
            entry = Entry(name, {"engine": "vllm"})
        case "openai" | "text-completion-openai" | "custom_openai" if parameters.get("api_base") and "/" in model:
            entry = Entry(name, {"engine": "vllm"})
            entry.notes.append("its server only speaks OpenAI's API: check that vLLM is the engine for it")
        case _:
            return f"{provider} is a provider or a server of its own; cortex runs models on its own hosts"
    weights.set_repository(entry, model, weights.home)
    return entry


def _read_parameters(entry: Entry, parameters: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    for name in _SAMPLING:
        if name in parameters:
            entry.sample(name, parameters[name])
    if isinstance(length := parameters.get("max_tokens"), int):
        entry.keys["default_output_tokens"] = length
    timeouts = [t for name in _TIMEOUTS if isinstance(t := parameters.get(name), (int, float))]
    if timeouts:
        entry.keys["request_timeout_s"] = timeouts[0]
    prices = {**info, **parameters}
    for ours, theirs in (("input", "input_cost_per_token"), ("output", "output_cost_per_token")):
        if isinstance(price := prices.get(theirs), (int, float)):
            entry.keys.setdefault("cost", {})[ours] = round(price * 1e6, 9)
    mode = info.get("mode")
    if mode in ("embedding", "rerank"):
        entry.keys["task"] = "embed" if mode == "embedding" else "rerank"
    unread = parameters.keys() - _READ - _HARMLESS - set(_SAMPLING)
    entry.drop(unread & set(_LIMITS), "limits are those of a key: `cortex key new --rpm`")
    entry.drop(unread & {"api_key"}, "cortex makes a key for each worker; clients get theirs from `cortex key new`")
    entry.drop(unread - set(_LIMITS) - {"api_key"})
    entry.drop(f"model_info.{k}" for k in info.keys() - _HARMLESS - _READ)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
