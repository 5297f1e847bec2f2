"""What a model can do: read from its weights by the host that has them, overridden by its operator.

Pure values. None and empty mean unknown, which differs from no.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Price = Annotated[float, Meta(ge=0, le=1e9)]
Level = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
LEVELS: tuple[Level, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""All levels of reasoning effort that clients use, in ascending order."""


class Template(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a chat template accepts. In `models.toml` each field overrides the one from the weights."""

    inline_system: bool | None = None
    """System messages in the middle of a conversation."""
    developer_role: bool | None = None
    content_parts: bool | None = None
    """A message's content as a list of parts."""
    tools: bool | None = None
    reasoning_field: Literal["reasoning_content", "reasoning", "none"] | None = None
    """The field for the reasoning of earlier turns; "none": the template takes none."""
    thinking_switch: str | None = None
    """The template's variable that turns thinking on and off; "": none."""
    tool_ids: Literal["any", "alnum9"] | None = None


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling parameters for requests that do not set them."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None


class Cost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """US dollars per million tokens, for clients that show the cost of an answer. None is unpriced, 0 is free."""

    input: Price | None = None
    output: Price | None = None
    cache_read: Price | None = None
    cache_write: Price | None = None


class ModelProfile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host's findings in a function's weights."""

    template: Template = Template()
    vision: bool | None = None
    reasoning: bool | None = None
    context: int = 0
    """Context length in tokens that the model was trained for."""
    effort: dict[str, str] | None = None
    """The template's level for each level that a client may use."""


def template_of(profile: ModelProfile | None, declared: Template) -> Template:
    """Return the template's abilities from the weights, overridden by the declared ones."""
    if profile is None or profile.template == Template():
        return declared
    if declared == Template():
        return profile.template
    fields = {f: getattr(declared, f) for f in Template.__struct_fields__}
    return Template(**{f: getattr(profile.template, f) if v is None else v for f, v in fields.items()})
