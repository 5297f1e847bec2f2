"""A worker's text reaches an operator's terminal without control characters."""

import json
import os
import pty
import subprocess

import pytest

from tests.e2e.security.keyed import Keyed
from tests.support.catalogues import fake
from tests.support.stack import CORTEX, eventually

pytestmark = pytest.mark.xdist_group("security")

ATTACK = "\x1b]0;owned\x07\x9b2J"


def on_a_terminal(keyed: Keyed, *arguments: str) -> bytes:
    """Return what a command writes to a terminal."""
    outer, inner = pty.openpty()
    env = {**keyed.stack.env, "CORTEX_API_KEY": keyed.keys["admin"], "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(
        [*CORTEX, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=inner, stderr=inner
    ) as process:
        os.close(inner)
        written = b""
        try:
            while piece := os.read(outer, 65536):
                written += piece
        except OSError:  # a terminal without a writer reads so
            pass
        process.wait(30)
    os.close(outer)
    return written


@pytest.mark.long
def test_escape_sequences_of_workers_are_escaped_on_a_terminal_only(keyed: Keyed) -> None:
    text = keyed.stack.models.read_text()
    cut = text.index("[aliases]")
    keyed.stack.models.write_text(text[:cut] + fake("two/escapes", "--answer", ATTACK) + "\n" + text[cut:])
    try:
        eventually(lambda: keyed.ask("other", "two/escapes").status_code == 200, what="the function to answer")
        keyed.ask("other", "two/escapes", messages=[{"role": "user", "content": ATTACK}])
        shown = on_a_terminal(keyed, "call", "two/escapes", "Hello!")
        raw = on_a_terminal(keyed, "call", "two/escapes", "Hello!", "--raw")
        piped = keyed.stack.cli("call", "two/escapes", "Hello!", env={"CORTEX_API_KEY": keyed.keys["admin"]})
        as_json = on_a_terminal(keyed, "call", "two/escapes", "Hello!", "--json")
        missing = on_a_terminal(keyed, "fn", "show", ATTACK)
    finally:
        keyed.stack.models.write_text(text)

    assert b"\\x1b]0;owned\\x07\\x9b2J" in shown
    assert json.dumps(ATTACK).strip('"').encode() in as_json
    for written in (shown, as_json, missing):
        assert b"\x1b]0" not in written
        assert "\x9b".encode() not in written
    assert ATTACK.encode() in raw
    assert ATTACK in piped.stdout
