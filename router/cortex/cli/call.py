"""`cortex call`: one prompt to one function, streamed to the terminal."""

import sys

import msgspec
import rich_click as click
from msgspec import Struct
from msgspec.structs import replace

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_bar, state
from cortex.cli.names import FUNCTION
from cortex.cli.visible import echo_json, for_terminal


class Message(Struct, frozen=True):
    """A message of a chat."""

    role: str
    content: str | None


class ChatBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A chat request."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta | None = None


class _Error(Struct, frozen=True):
    message: str | None = None


class _Chunk(Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    error: _Error | None = None


@click.command()
@click.argument("function", type=FUNCTION)
@click.argument("prompt", required=False)
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Maximum number of tokens.")
@click.option("-s", "--system", help="A system prompt.")
@click.option("-t", "--temperature", type=float, help="0 gives the most likely answer.")
@click.option("--json", "as_json", is_flag=True, help="Do not stream; print the whole answer as JSON.")
@click.option("--raw", is_flag=True, help="Send control characters to the terminal instead of showing them.")
def call(
    function: str,
    prompt: str | None,
    max_tokens: int | None,
    system: str | None,
    temperature: float | None,
    as_json: bool,
    raw: bool,
) -> None:
    """Send one prompt to a function and stream its answer. Without PROMPT, or with -, read it from standard input. A
    cold function is started."""
    if prompt in (None, "-"):
        if prompt is None and sys.stdin.isatty():
            raise Failed("no prompt", hint=f'`cortex call {function} "Hello!"`, or pipe one in.', code=2)
        prompt = sys.stdin.read()
    messages = (Message("user", prompt),) if not system else (Message("system", system), Message("user", prompt))
    body = ChatBody(model=function, messages=messages, max_tokens=max_tokens, temperature=temperature)
    router = Router()
    if as_json:
        echo_json(router.chat(body), indent=2)
        return
    _stream(router, body, raw=raw)


def _progress(router: Router, name: str) -> str:
    """Return the state of a waiting request's function, if the key may read it."""
    try:
        return f"{name}: {state(router.function(name))}"
    except Failed:
        return f"waiting for {name}"


def _stream(router: Router, body: ChatBody, *, raw: bool) -> None:
    """Print the answer as it arrives, and reasoning dimmed on standard error. Unless `raw`, a terminal shows control
    characters escaped."""
    wrote = False
    with progress_bar() as waiting:
        task = waiting.add_task(f"waiting for {body.model}", total=None)
        for line in router.lines("/v1/chat/completions", {}, body=replace(body, stream=True)):
            if line.startswith(":") and not waiting.disable and not wrote:  # a keep-alive while the request waits
                reason = for_terminal(line.removeprefix(":").strip(), sys.stderr)
                known = f"{body.model}: {reason}" if reason != "waiting" else _progress(router, body.model)
                waiting.update(task, description=known)
            if not line.startswith("data: {"):
                continue
            chunk = msgspec.json.decode(line.removeprefix("data: "), type=_Chunk)
            if chunk.error is not None:
                raise Failed(f"{chr(10) if wrote else ''}the answer was interrupted: {chunk.error.message}")
            for choice in chunk.choices:
                delta = choice.delta or _Delta()
                thought, text = delta.reasoning_content or "", delta.content or ""
                if thought or text:
                    waiting.stop()
                if thought:
                    click.secho(thought if raw else for_terminal(thought, sys.stderr), nl=False, err=True, dim=True)
                if text:
                    wrote = True
                    sys.stdout.write(text if raw else for_terminal(text, sys.stdout))
                    sys.stdout.flush()
    sys.stdout.write("\n")
