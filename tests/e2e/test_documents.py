"""The commands in the documents work on a running cortex."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.workers import ONE
from tests.support.stack import CORTEX, Stack

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)

ROOT = Path(__file__).parent.parent.parent
DEFAULT_URL = "http://127.0.0.1:31313"


def blocks(document: str, section: str, language: str) -> str:
    """Return the code of one language in a section of a document, as it stands there."""
    text = (ROOT / document).read_text()
    body = re.split(r"^## ", text.partition(f"## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", body, re.MULTILINE | re.DOTALL))


def typed(stack: Stack, commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type commands into a shell in which curl fails on an HTTP error. Commands that do not end are stopped."""
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    commands = re.sub(r" +# .*$", "", commands, flags=re.MULTILINE)
    commands = re.sub(r"^(.* (?:-f|top))$", r"timeout 3 \1 || test $? = 124", commands, flags=re.MULTILINE)
    commands = commands.replace("uv run cortex", shlex.join(CORTEX)).replace(DEFAULT_URL, stack.url)
    env = {**stack.env, "CURL_HOME": str(folder), "CORTEX": stack.url, "KEY": "none"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], env=env, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.parametrize(
    ("document", "section", "answers"),
    [
        pytest.param(
            "README.md",
            "The first ten minutes",
            ["chat.completion", "cortex/harbour: ready", "cortex/harbour: cold", "DEVICE", "placed"],
            marks=pytest.mark.long,
        ),
        (
            "docs/api.md",
            "With curl",
            ["chat.completion", "[DONE]", '"response"', '"stop_reason"', "input_tokens", '"list"'],
        ),
    ],
)
def test_the_commands_of_a_document_work(
    stack: Stack, tmp_path: Path, document: str, section: str, answers: list[str]
) -> None:
    ran = typed(stack, blocks(document, section, "sh"), tmp_path)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [a for a in answers if a not in ran.stdout] == []


@pytest.mark.long
def test_the_python_example_of_the_api_page_runs(stack: Stack) -> None:
    code = blocks("docs/api.md", "With the SDKs", "python").replace(DEFAULT_URL, stack.url)

    ran = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) >= 2
