"""What a model can do, as far as anybody knows: found in its weights by the host that has them, overridden by its
operator. Pure values; None and empty say that it is not known, which is not the same as no.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Price = Annotated[float, Meta(ge=0, le=1e9)]
Level = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
LEVELS: tuple[Level, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Every word that clients have for how hard to think, in order."""


class Template(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a chat template takes. In `models.toml` each overrides what was found."""

    inline_system: bool | None = None
    """System messages in the middle of a conversation."""
    developer_role: bool | None = None
    content_parts: bool | None = None
    """A message's content as a list of parts."""
    tools: bool | None = None
    reasoning_field: Literal["reasoning_content", "reasoning", "none"] | None = None
    """Whether thoughts of earlier turns are wanted back, and under which name."""
    thinking_switch: str | None = None
    """The template's variable that turns thinking on and off; "": it has none."""
    tool_ids: Literal["any", "alnum9"] | None = None


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Used where the client says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None


class Cost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """US dollars per million tokens, for clients that show what an answer cost. Absent is unpriced, 0 is free."""

    input: Price | None = None
    output: Price | None = None
    cache_read: Price | None = None
    cache_write: Price | None = None


class ModelProfile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host found in a function's weights."""

    template: Template = Template()
    vision: bool | None = None
    reasoning: bool | None = None
    context: int = 0
    """Tokens the model was trained for."""
    effort: dict[str, str] | None = None
    """For each level a client may name, the one to tell the template."""


def template_of(known: ModelProfile | None, said: Template) -> Template:
    """Return what was found, with what the operator says over it."""
    if known is None or known.template == Template():
        return said
    if said == Template():
        return known.template
    fields = {f: getattr(said, f) for f in Template.__struct_fields__}
    return Template(**{f: getattr(known.template, f) if v is None else v for f, v in fields.items()})
