"""Control characters of external text are escaped on a terminal and unchanged elsewhere."""

import ast
import io
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.text import Text

import cortex.cli
from cortex.cli.safe_console import SafeConsole
from cortex.cli.tables import table
from cortex.cli.visible import for_terminal, visible

TITLE = "\x1b]0;owned\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, über 漢字 🙂\n\ttab", "plain, über 漢字 🙂\n\ttab"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        (TITLE, "\\x1b]0;owned\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb", "a\\x0db"),
        ("a\r\nb", "a\nb"),
        ("\x00\x08\x7f", "\\x00\\x08\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_only_a_terminal_gets_escaped_text() -> None:
    assert for_terminal(TITLE, Terminal()) == "\\x1b]0;owned\\x07"
    assert for_terminal(TITLE, io.StringIO()) == TITLE


def test_a_console_on_a_terminal_escapes_all_content() -> None:
    out = Terminal()
    console = SafeConsole(file=out, force_terminal=True, width=100, highlight=False)
    rows = table("NAME", "WHY")
    rows.add_row(TITLE, "\x9b2J")

    console.print(rows)
    console.print(TITLE, markup=False)
    console.print(Text(TITLE))
    with Progress(TextColumn("{task.description}"), console=console, auto_refresh=False) as progress:
        progress.add_task(TITLE)
        progress.refresh()

    written = out.getvalue()
    assert written.count("\\x1b]0;o") >= 4  # rich itself drops a bell, and cuts what is too wide
    assert "\x1b]0" not in written
    assert "\x9b" not in written


def test_a_console_in_a_pipe_prints_the_text_unchanged() -> None:
    out = io.StringIO()

    SafeConsole(file=out, width=100).print("\x1b[31mred", markup=False)

    assert out.getvalue() == "\x1b[31mred\n"


def test_commands_print_text_only_through_the_escaping_functions() -> None:
    """`click.echo` is for JSON, which escapes them, and for what cortex itself made."""
    made_here = {"completion.py", "visible.py"}
    offenders = []
    for path in Path(next(iter(cortex.cli.__path__))).glob("*.py"):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            prints = ast.unparse(call.func) in ("click.echo", "print", "click.secho", "sys.stdout.write")
            if prints and path.name not in made_here:
                text = ast.unparse(call.args[0]) if call.args else ""
                if not text.startswith(("json.dumps", "text if raw", "thought if raw", "(line if raw", "'\\n'")):
                    offenders.append(f"{path.name}: {ast.unparse(call)}")

    assert offenders == []
