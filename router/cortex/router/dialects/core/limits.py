"""How long a prompt may be, and how much room it leaves: decided before a worker has to find out.

The exact count comes from the worker's own tokenizer and is an argument here. Where there is no worker yet, the
estimate is what the text weighs; it is for people and progress bars, and must be marked as an estimate.
"""

from cortex.router.dialects.core.conversation import ImagePart, Request, TextPart, User
from cortex.router.dialects.core.errors import DialectError, max_tokens_too_large, prompt_too_long
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.core.wire import text_of

_BYTES_PER_TOKEN = 3.6
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1000
_TEMPLATE_TOKENS = 1024


def fit(prompt_tokens: int, max_tokens: int | None, traits: Traits) -> int | None:
    """How much the worker may write after this prompt; raises when there is no room.

    (1) the window is not known: the worker decides
    (2) the prompt alone fills it: nothing helps
    (3) the rest is enough
    (4) the function would rather answer shortly than not at all
    (5) the client has to decide, and is told the numbers
    """
    window = traits.context_window
    if window is None:  # (1)
        return max_tokens
    room = window - prompt_tokens
    if room <= 0:  # (2)
        raise DialectError(prompt_too_long(prompt_tokens, window))
    if max_tokens is None or max_tokens <= room:  # (3)
        return max_tokens
    if traits.on_long_prompt == "clamp":  # (4)
        return room
    raise DialectError(max_tokens_too_large(prompt_tokens, max_tokens, window))  # (5)


def surely_fits(body_bytes: int, max_tokens: int | None, window: int | None) -> bool:
    """Whether nobody need count: a token takes a byte at least, and the template adds a little of its own."""
    return window is not None and body_bytes + (max_tokens or 0) + _TEMPLATE_TOKENS <= window


def estimate(request: Request) -> int:
    """About how many tokens a prompt has, without anyone who could count them."""
    images = 0
    size = len(text_of([tool.function for tool in request.tools or ()]).encode()) if request.tools else 0
    for message in request.messages:
        if isinstance(message, User) and not isinstance(message.content, str):
            images += sum(isinstance(part, ImagePart) for part in message.content)
            size += sum(len(part.text.encode()) for part in message.content if isinstance(part, TextPart))
        else:
            size += len(text_of(message).encode())
    return round(size / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(request.messages) + _TOKENS_PER_IMAGE * images
