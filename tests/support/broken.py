"""A router and an agent with a defect: `python -m tests.support.broken FORM` calls both and logs like them.

What their clients are told goes to standard output, the log to standard error.
"""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from cortex.platform import log
from cortex.platform.agent import api, loop
from cortex.platform.settings import Log, Settings
from cortex.router.app import create_app
from cortex.router.dialects.core import wire
from tests.support.incoming import with_client

KEY, WORDS = "sk-cortex-5ecre7", "words that are nobody's business"


def breaks(*_: object, **__: object) -> Any:
    """What a mistake may look like at its worst: locals that hold all it was given, a message that quotes it."""
    key, words = KEY, WORDS
    try:
        raise KeyError(words)
    except KeyError as error:
        raise RuntimeError(f"cannot handle {key} {words}") from error


async def ask(served: Any, path: str) -> None:
    """Ask with a key and words that are nobody's business, and print the answer."""
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:31313") as http:
        headers = {"authorization": f"Bearer {KEY}", "cookie": f"cortex_key={KEY}"}
        answer = await http.post(path, json={"model": WORDS}, headers=headers)
        print(answer.status_code, answer.text)


async def main(form: Any, folder: Path) -> None:
    """Ask everybody."""
    log.configure(Log(format=form))
    for name in ("token", "key"):
        (folder / name).write_text(KEY)
    (folder / "models.toml").write_text("")
    settings = Settings(
        models_config=str(folder / "models.toml"),
        token_file=str(folder / "token"),
        local_key_file=str(folder / "key"),
    )
    wire.peek = loop.Agent.drain = breaks  # type: ignore[method-assign]
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"):
        await ask(with_client(create_app(settings)), path)
    await ask(api.create_app(settings), "/drain")
    try:
        breaks()
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(sys.argv[1], Path(folder)))
