"""`cortex call`: one prompt to one function, streamed to the terminal."""

import json
import sys
from typing import Any

import rich_click as click

from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_bar, state
from cortex.cli.names import FUNCTION
from cortex.cli.visible import for_terminal


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
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {"model": function, "messages": [*messages, {"role": "user", "content": prompt}]}
    if max_tokens:
        body["max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
    router = Router()
    if as_json:
        click.echo(json.dumps(router.post("/v1/chat/completions", body, timeout_s=3600), indent=2))
        return
    _stream(router, body, raw=raw)


def _progress(router: Router, name: str) -> str:
    """Return the state of a waiting request's function, if the key may read it."""
    try:
        return f"{name}: {state(router.function(name))}"
    except Failed:
        return f"waiting for {name}"


def _stream(router: Router, body: dict[str, Any], *, raw: bool) -> None:
    """Print the answer as it arrives, and reasoning dimmed on standard error. Unless `raw`, a terminal shows control
    characters escaped."""
    wrote = False
    with progress_bar() as waiting:
        task = waiting.add_task(f"waiting for {body['model']}", total=None)
        for line in router.lines("/v1/chat/completions", {}, body=body | {"stream": True}):
            if line.startswith(":") and not waiting.disable and not wrote:  # a keep-alive while the request waits
                waiting.update(task, description=_progress(router, str(body["model"])))
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise Failed(f"{chr(10) if wrote else ''}the answer was interrupted: {chunk['error'].get('message')}")
            for choice in chunk.get("choices", []):
                delta = choice.get("delta") or {}
                thought, text = delta.get("reasoning_content") or "", delta.get("content") or ""
                if thought or text:
                    waiting.stop()
                if thought:
                    click.secho(thought if raw else for_terminal(thought, sys.stderr), nl=False, err=True, dim=True)
                if text:
                    wrote = True
                    sys.stdout.write(text if raw else for_terminal(text, sys.stdout))
                    sys.stdout.flush()
    sys.stdout.write("\n")
