"""Check a prompt and its `max_tokens` against the context window before the worker does.

The exact count comes from the worker's tokenizer and is an argument. Without a worker, `estimate` derives a count from
the size of the text; it is for display only and must be marked as an estimate.
"""

from cortex.router.dialects.core.conversation import ImagePart, Request, TextPart, User
from cortex.router.dialects.core.errors import ContextExceeded, max_tokens_too_large, prompt_too_long
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.core.wire import text_of

_BYTES_PER_TOKEN = 3.6
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1000
_TEMPLATE_TOKENS = 1024


_SENSIBLE_REST = 256


def sensible_rest(window: int) -> int:
    """Return the tokens that a prompt must leave for an answer to be worth starting: 256, or a quarter of a window of
    less than 1024."""
    return min(_SENSIBLE_REST, window // 4)


def fit(prompt_tokens: int, max_tokens: int | None, traits: Traits) -> int | None:
    """Return the output limit to send for this prompt. Raises ContextExceeded when the request does not fit.

    (1) the window is unknown: the worker decides
    (2) the prompt alone fills it: refuse
    (3) the rest is enough
    (4) clamp the answer to what is left: while that is a sensible rest, or as the function says
    (5) refuse with the numbers; the client decides: Claude Code compacts the conversation
    """
    window = traits.context_window
    if window is None:  # (1)
        return max_tokens
    room = window - prompt_tokens
    if room <= 0:  # (2)
        raise ContextExceeded(prompt_too_long(prompt_tokens, window))
    if max_tokens is None or max_tokens <= room:  # (3)
        return max_tokens
    clamps = traits.on_long_prompt == "clamp" or (traits.on_long_prompt == "auto" and room >= sensible_rest(window))
    if clamps:  # (4)
        return room
    raise ContextExceeded(max_tokens_too_large(prompt_tokens, max_tokens, window))  # (5)


def fits_without_counting(body_bytes: int, max_tokens: int | None, window: int | None) -> bool:
    """Whether a request fits without counting: a token takes at least one byte; the template adds a few tokens."""
    return window is not None and body_bytes + (max_tokens or 0) + _TEMPLATE_TOKENS <= window


def estimate(request: Request) -> int:
    """Estimate the tokens of a prompt without a tokenizer."""
    images = 0
    size = len(text_of([tool.function for tool in request.tools or ()]).encode()) if request.tools else 0
    for message in request.messages:
        if isinstance(message, User) and not isinstance(message.content, str):
            images += sum(isinstance(part, ImagePart) for part in message.content)
            size += sum(len(part.text.encode()) for part in message.content if isinstance(part, TextPart))
        else:
            size += len(text_of(message).encode())
    return round(size / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(request.messages) + _TOKENS_PER_IMAGE * images
