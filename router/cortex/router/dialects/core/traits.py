"""What a function's model, template and engine accept. The caller fills it in; translation follows it.

The defaults describe the most restrictive worker: a feature is sent only when the worker supports it.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from cortex.functions.capabilities import Sampling
from cortex.functions.passing import Passing, passing
from cortex.router.dialects.core.errors import BadRequest, Kind

# Templates with three levels raise on any other, so the outer levels map to the nearest of them.
EFFORT = {"none": "none", "minimal": "low", "low": "low", "medium": "medium"} | dict.fromkeys(
    ("high", "xhigh", "max"), "high"
)


_NO_TOOLS = (
    "this model cannot call tools (`tool_call` is false in /v1/models), so a call cannot be demanded: "
    "leave it out, or send auto"
)

_PLAIN = passing("openai", "chat")
_PLAIN = replace(_PLAIN, fields=_PLAIN.fields | passing("openai", "completions").fields)


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning_field` and `thinking_budget` name fields of the worker's dialect; None: unsupported."""

    # the chat template
    inline_system: bool = False
    developer_role: bool = False
    content_parts: bool = True
    prefill: bool = True
    tool_ids: Literal["any", "alnum9"] = "any"
    reasoning_field: Literal["reasoning_content", "reasoning"] | None = None
    thinking_switch: str | None = "enable_thinking"
    effort: dict[str, str] = msgspec.field(default_factory=lambda: dict(EFFORT))

    # the model
    vision: bool = False
    audio: bool = True
    tools: bool = True
    context_window: int | None = None

    # the engine
    thinking_budget: Literal["thinking_token_budget", "thinking_budget_tokens"] | None = None
    named_tool_choice: bool = True
    json_schema: bool = True
    names_stop: bool = True
    passing: Passing = _PLAIN
    completion_tokens: int | None = None

    # the function's own settings
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    sampling: Sampling = Sampling()
    template_kwargs: dict[str, str | bool | int] = msgspec.field(default_factory=dict)
    on_long_prompt: Literal["auto", "error", "clamp"] = "auto"

    def check_demand(self, has_tools: bool, at: str) -> None:
        """Raise BadRequest for a demanded tool call that cannot be made."""
        if not self.tools:
            raise BadRequest(_NO_TOOLS, at, Kind.UNSUPPORTED)
        if not has_tools:
            raise BadRequest("a tool call is demanded and there are no tools: send tools, or leave it out", at)

    def output_tokens(self, client_limit: int | None) -> int | None:
        """Return the worker's output limit for a client's `max_tokens`. A function's limit always applies."""
        limit = self.default_output_tokens if client_limit is None else client_limit
        if self.max_output_tokens is None:
            return limit
        return self.max_output_tokens if limit is None else min(limit, self.max_output_tokens)

    def limit_per_answer(self, client_limit: int | None, answers: int) -> int | None:
        """Return the output limit of each answer: a function's limit covers all answers of a request together.

        Raises BadRequest when less than one token is left for each.
        """
        limit = self.output_tokens(client_limit)
        if self.max_output_tokens is None or answers == 1 or limit is None:
            return limit
        if answers > self.max_output_tokens:
            most = self.max_output_tokens
            raise BadRequest(f"{answers} answers exceed the limit of {most} output tokens per request", "n")
        return min(limit, self.max_output_tokens // answers)
