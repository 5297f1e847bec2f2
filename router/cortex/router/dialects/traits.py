"""What a function's model, template and engine can take. A value that the edge fills in and translation obeys.

The defaults describe the most careful worker: what is not known to work is not sent.
"""

from typing import Literal

import msgspec

from cortex.functions.capabilities import Sampling

# A template that knows only three levels raises on a fourth, so the outer ones fold inwards.
EFFORT = {"none": "none", "minimal": "low", "low": "low", "medium": "medium"} | dict.fromkeys(
    ("high", "xhigh", "max"), "high"
)


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

    # the function's own settings
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    sampling: Sampling = Sampling()
    on_long_prompt: Literal["error", "clamp"] = "error"
    server_tools: Literal["reject", "drop"] = "reject"
    remote_images: bool = False

    def output_tokens(self, asked: int | None) -> int | None:
        """How much the worker may write, given what the client asked for."""
        wanted = self.default_output_tokens if asked is None else asked
        if wanted is None or self.max_output_tokens is None:
            return wanted
        return min(wanted, self.max_output_tokens)
