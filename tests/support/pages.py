"""Files generated from the code, mostly docs: `just docs` writes them, a test compares them."""

from collections.abc import Callable
from pathlib import Path

from cortex.platform import metrics
from tests.support import admin_page, cli_page, dashboard, reference

ROOT = Path(__file__).parent.parent.parent
PAGES: dict[str, Callable[[], str]] = {
    "docs/admin.md": admin_page.page,
    "docs/cli.md": cli_page.page,
    "docs/metrics.md": metrics.document,
    "docs/models.md": reference.models,
    "docs/passing.md": reference.passing,
    "docs/cortex.md": reference.cortex,
    "deploy/monitoring/dashboard.json": dashboard.dashboard,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / name).write_text(page())
