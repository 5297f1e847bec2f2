"""The pages of `docs/` that are generated: `just docs` writes them, a test compares them."""

from collections.abc import Callable
from pathlib import Path

from cortex.platform import metrics
from tests.support import cli_page, reference

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page.page,
    "metrics.md": metrics.documented,
    "models.md": reference.models,
    "cortex.md": reference.cortex,
}


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
