"""What is taken out of a prompt so that two requests of one session share their prefix. Nothing else ever is.

Claude Code opens its system prompt with a line for billing that differs between conversations (and in older
versions between requests). Left in place it is the first text of the prompt, and no cached prefix survives it.
"""

import re

MARK = b"x-anthropic-billing-header"

# The line is `name: key=value; key=value;` in a block of its own, but a client that sends one string glues the
# prompt behind it, with or without a line break: so only what is recognisably the header goes.
_BILLING = re.compile(r"\s*x-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]*(?:;|(?=\n)|$))*[ \t;]*\n*")


def without_billing(text: str) -> str:
    """The text as the model should read it; "" when nothing but the header was there."""
    if "x-anthropic-billing-header" not in text:
        return text
    found = _BILLING.match(text)
    return text[found.end() :] if found else text


def reminder(text: str) -> str:
    """A system message from the middle of a conversation, as a user turn: never hoisted to the front."""
    return f"<system-reminder>\n{text}\n</system-reminder>"
