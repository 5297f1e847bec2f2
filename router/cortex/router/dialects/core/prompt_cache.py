"""The one text removed from prompts, so that requests of a session share a cached prefix.

Claude Code starts its system prompt with a billing line that differs between conversations (in older versions between
requests). It is the first text of the prompt, so with it no cached prefix matches.
"""

import re

MARK = b"x-anthropic-billing-header"

# The line is `name: key=value; key=value;` in a block of its own, but a client that sends one string appends the
# prompt to it, with or without a line break. The pattern matches the header only.
_BILLING = re.compile(r"\s*x-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]*(?:;|(?=\n)|$))*[ \t;]*\n*")


def without_billing(text: str) -> str:
    """Return the text without the billing header; "" when it held nothing else."""
    if "x-anthropic-billing-header" not in text:
        return text
    header = _BILLING.match(text)
    return text[header.end() :] if header else text


def reminder(text: str) -> str:
    """Return a later system message as user text, in its place."""
    return f"<system-reminder>\n{text}\n</system-reminder>"
