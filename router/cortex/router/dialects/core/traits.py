"""What a function's model, template and engine can take. A value that the edge fills in and translation obeys.

The defaults describe the most careful worker: what is not known to work is not sent.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from cortex.functions.capabilities import Sampling
from cortex.functions.passing import Passing, passing
from cortex.router.dialects.core.errors import BadRequest

# A template that knows only three levels raises on a fourth, so the outer ones fold inwards.
EFFORT = {"none": "none", "minimal": "low", "low": "low", "medium": "medium"} | dict.fromkeys(
    ("high", "xhigh", "max"), "high"
)


_PLAIN = passing("openai", "chat")
_PLAIN = replace(_PLAIN, fields=_PLAIN.fields | passing("openai", "completions").fields)


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning_field` and `thinking_budget` are names of fields in the worker's dialect; None: it has none."""

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
    context_window: int | None = None

    # the engine
    thinking_budget: Literal["thinking_token_budget", "thinking_budget_tokens"] | None = None
    named_tool_choice: bool = True
    max_completion_tokens: bool = True
    json_schema: bool = True
    passing: Passing = _PLAIN
    completion_tokens: int | None = None

    # the function's own settings
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    sampling: Sampling = Sampling()
    on_long_prompt: Literal["error", "clamp"] = "error"
    server_tools: Literal["reject", "drop"] = "reject"

    def output_tokens(self, asked: int | None) -> int | None:
        """How much the worker may write, given what the client asked for. A function's limit is always written."""
        wanted = self.default_output_tokens if asked is None else asked
        if self.max_output_tokens is None:
            return wanted
        return self.max_output_tokens if wanted is None else min(wanted, self.max_output_tokens)

    def each(self, asked: int | None, answers: int) -> int | None:
        """How much each of several answers may be: what a function allows is for all answers of a request together.

        Raises BadRequest where not even a token is left for each.
        """
        limit = self.output_tokens(asked)
        if self.max_output_tokens is None or answers == 1 or limit is None:
            return limit
        if answers > self.max_output_tokens:
            most = self.max_output_tokens
            raise BadRequest(f"{answers} answers do not fit into the {most} tokens of a request", "n")
        return min(limit, self.max_output_tokens // answers)
