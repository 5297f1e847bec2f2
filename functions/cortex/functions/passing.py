"""What a client may send to each server: one table of fields and of content parts. Pure.

The table is an allowlist, because engines get new fields with every release, and some of them make an engine read
files, take memory or run a client's templates. Other fields are dropped and listed in the answer's
`x-cortex-dropped`; those in `CHANGES_THE_ANSWER` are refused, because without them the answer would be different. A
function's `allow` adds a field (`grammar`), a name inside one (`chat_template_kwargs.style`), or a kind of part
(`content.image_embeds`).
"""

from typing import Literal

from msgspec import Struct

Entrance = Literal[
    "chat", "completions", "embeddings", "rerank", "messages", "responses",
    "transcriptions", "translations", "speech", "images", "image_edits",
    "tokenize", "detokenize", "infill", "score", "pooling",
]  # fmt: skip
"""The endpoint of a request. `messages` and `responses` are those that an engine answers itself (`native`); those from
`tokenize` on are engines' own routes."""
Family = Literal["openai", "vllm", "llama", "llama-python"]
"""A row of the table: servers of one family take the same fields. `openai` is any other server."""

_SHARED = frozenset(
    {
        "model", "stream", "stream_options", "n", "max_tokens", "temperature", "top_p", "stop", "seed", "user",
        "presence_penalty", "frequency_penalty", "logit_bias", "prompt_cache_key", "metadata", "store",
        "service_tier", "safety_identifier", "prompt_cache_retention",
    }
)  # fmt: skip
_CHAT = _SHARED | {
    "messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
    "response_format", "logprobs", "top_logprobs", "reasoning_effort", "reasoning", "verbosity", "modalities",
    "prediction", "chat_template_kwargs",
}  # fmt: skip
_COMPLETIONS = _SHARED | {"prompt", "suffix", "echo", "logprobs", "best_of"}
_EMBEDDINGS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents", "user"})
_MESSAGES = frozenset(
    {
        "model", "messages", "system", "max_tokens", "metadata", "stop_sequences", "stream", "temperature", "top_p",
        "top_k", "tools", "tool_choice", "thinking", "output_config", "output_format", "service_tier",
        "context_management", "cache_control",
    }
)  # fmt: skip
_RESPONSES = frozenset(
    {
        "model", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
        "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store",
        "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
        "truncation", "user", "include",
    }
)  # fmt: skip

# Of a form, the names without what follows in brackets: `include[]` is `include`.
_TRANSCRIPTIONS = frozenset(
    {
        "file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities", "stream",
        "include", "chunking_strategy", "known_speaker_names", "known_speaker_references",
    }
)  # fmt: skip
_TRANSLATIONS = frozenset({"file", "model", "prompt", "response_format", "temperature"})
_VLLM_AUDIO = frozenset(
    {
        "language", "to_language", "stream", "stream_include_usage", "stream_continuous_usage_stats", "seed", "top_p",
        "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "max_completion_tokens",
    }
)  # fmt: skip
_SPEECH = frozenset(
    {"model", "input", "voice", "instructions", "response_format", "speed", "stream_format", "language"}
)
_IMAGES = frozenset(
    {
        "model", "prompt", "n", "size", "quality", "style", "response_format", "output_format", "output_compression",
        "background", "moderation", "stream", "partial_images", "user", "seed", "negative_prompt",
    }
)  # fmt: skip
_IMAGE_EDITS = (_IMAGES - {"style", "moderation"}) | {"image", "mask", "input_fidelity"}
_MEDIA: dict[Entrance, frozenset[str]] = {
    "transcriptions": _TRANSCRIPTIONS,
    "translations": _TRANSLATIONS,
    "speech": _SPEECH,
    "images": _IMAGES,
    "image_edits": _IMAGE_EDITS,
}

_COMMON_SAMPLING = frozenset({"top_k", "min_p", "repetition_penalty", "repeat_penalty", "ignore_eos", "min_tokens"})
_VLLM_SAMPLING = frozenset(
    {
        "top_k", "min_p", "repetition_penalty", "length_penalty", "ignore_eos", "min_tokens", "stop_token_ids",
        "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens", "bad_words",
        "allowed_token_ids", "prompt_logprobs", "truncate_prompt_tokens", "add_special_tokens", "return_token_ids",
        "return_tokens_as_token_ids", "thinking_token_budget", "include_reasoning", "structured_outputs",
        "guided_json", "guided_regex", "guided_choice",
    }
)  # fmt: skip
_LLAMA_SAMPLING = frozenset(
    {
        "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range",
        "dynatemp_exponent", "repeat_penalty", "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "adaptive_target",
        "adaptive_decay", "samplers", "min_keep", "n_probs", "post_sampling_probs", "ignore_eos", "cache_prompt",
        "timings_per_token", "return_tokens", "return_progress", "t_max_predict_ms", "json_schema", "grammar",
        "thinking_budget_tokens", "reasoning_format", "thinking_forced_open", "parse_tool_calls",
    }
)  # fmt: skip
_LLAMA_PYTHON_SAMPLING = frozenset(
    {"top_k", "min_p", "repeat_penalty", "mirostat_mode", "mirostat_tau", "mirostat_eta"}
)
_LLAMA_INFILL = _LLAMA_SAMPLING | {
    "model", "input_prefix", "input_suffix", "prompt", "stream", "temperature", "top_p",
    "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "n_indent",
}  # fmt: skip
_VLLM_TOKENIZE = frozenset({"model", "prompt", "add_special_tokens", "return_token_strs"})
_DETOKENIZE = frozenset({"model", "tokens"})
_SCORE = frozenset({"model", "text_1", "text_2", "queries", "documents", "truncate_prompt_tokens", "user"})
_POOLING = frozenset(
    {"model", "input", "encoding_format", "dimensions", "truncate_prompt_tokens", "add_special_tokens", "task", "user"}
)
_NO_ROUTES: dict[Entrance, frozenset[str]] = dict.fromkeys(
    ("tokenize", "detokenize", "infill", "score", "pooling"), frozenset()
)
_VLLM_ROUTES: dict[Entrance, frozenset[str]] = {
    **_NO_ROUTES,
    "tokenize": _VLLM_TOKENIZE,
    "detokenize": _DETOKENIZE,
    "score": _SCORE,
    "pooling": _POOLING,
}
_CONTINUES = frozenset({"add_generation_prompt", "continue_final_message", "echo"})

FIELDS: dict[Family, dict[Entrance, frozenset[str]]] = {
    "openai": {
        "chat": _CHAT | _COMMON_SAMPLING,
        "completions": _COMPLETIONS | _COMMON_SAMPLING,
        "embeddings": _EMBEDDINGS,
        "rerank": _RERANK,
        "messages": _MESSAGES,
        "responses": _RESPONSES,
        **_VLLM_ROUTES,
        **_MEDIA,
    },
    "vllm": {
        "chat": _CHAT | _VLLM_SAMPLING | _CONTINUES,
        "completions": _COMPLETIONS | _VLLM_SAMPLING | {"response_format"},
        "embeddings": _EMBEDDINGS | {"truncate_prompt_tokens", "add_special_tokens", "normalize"},
        "rerank": _RERANK | {"truncate_prompt_tokens"},
        "messages": _MESSAGES,
        "responses": _RESPONSES | {"top_k", "repetition_penalty"},
        **_VLLM_ROUTES,
        **_MEDIA,
        "transcriptions": _TRANSCRIPTIONS | _VLLM_AUDIO,
        "translations": _TRANSLATIONS | _VLLM_AUDIO,
    },
    "llama": {
        "chat": _CHAT | _LLAMA_SAMPLING | _CONTINUES,
        "completions": _COMPLETIONS | _LLAMA_SAMPLING,
        "embeddings": _EMBEDDINGS | {"embd_normalize"},
        "rerank": _RERANK,
        "messages": _MESSAGES | {"min_p"},
        "responses": _RESPONSES | {"top_k", "min_p"},
        **_NO_ROUTES,
        "tokenize": frozenset({"model", "content", "add_special", "parse_special", "with_pieces"}),
        "detokenize": _DETOKENIZE,
        "infill": _LLAMA_INFILL,
        **_MEDIA,
    },
    "llama-python": {
        "chat": _CHAT | _LLAMA_PYTHON_SAMPLING,
        "completions": _COMPLETIONS | _LLAMA_PYTHON_SAMPLING,
        "embeddings": _EMBEDDINGS,
        "rerank": frozenset(),
        "messages": frozenset(),
        "responses": frozenset(),
        **_NO_ROUTES,
        **dict.fromkeys(_MEDIA, frozenset[str]()),
    },
}

TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
PARTS: dict[Family, frozenset[str]] = {
    "openai": TEXT_PARTS | {"image_url", "input_audio"},
    "vllm": TEXT_PARTS | {"image_url", "input_image", "input_audio", "audio_url", "video_url"},
    "llama": TEXT_PARTS | {"image_url", "input_audio"},
    "llama-python": TEXT_PARTS | {"image_url"},
}
"""Kinds of parts that a chat message may have. Media in them are data, never addresses."""

MESSAGE_FIELDS = frozenset(
    {
        "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content",
        "thinking", "function_call", "tool_plan", "prefix", "partial",
    }
)  # fmt: skip
"""Fields of a chat message that pass."""

TEMPLATE_NAMES = frozenset(
    {
        "enable_thinking", "thinking", "thinking_mode", "thinking_budget", "reasoning_effort", "preserve_thinking",
        "clear_thinking", "drop_thinking", "low_effort", "date_string", "model_identity",
    }
)  # fmt: skip
"""Names inside `chat_template_kwargs` that pass. Others may be parameters of the renderer itself."""

CHANGES_THE_ANSWER = frozenset(
    {
        "grammar", "guided_grammar", "guided_json", "guided_regex", "guided_choice", "structured_outputs",
        "json_schema", "response_format", "chat_template", "documents", "prompt_embeds", "image_embeds", "lora",
        "lora_request", "tools", "functions", "previous_response_id", "conversation",
        "background", "use_beam_search", "best_of", "suffix",
    }
)  # fmt: skip
"""Fields that are refused instead of dropped where they do not pass."""


class Passing(Struct, frozen=True):
    """What passes to one function at one endpoint."""

    fields: frozenset[str]
    parts: frozenset[str]
    template_names: frozenset[str]
    allow: frozenset[str] = frozenset()
    """The function's `allow`."""


def passing(family: Family, entrance: Entrance, allow: tuple[str, ...] = ()) -> Passing:
    """Return what passes to a server of a family, extended by the function's `allow`."""
    extra = frozenset(allow)
    return Passing(
        fields=FIELDS[family][entrance] | {name for name in extra if "." not in name},
        parts=PARTS[family] | _within("content", extra),
        template_names=TEMPLATE_NAMES | _within("chat_template_kwargs", extra),
        allow=extra,
    )


def _within(field: str, allow: frozenset[str]) -> frozenset[str]:
    return frozenset(name.removeprefix(f"{field}.") for name in allow if name.startswith(f"{field}."))
