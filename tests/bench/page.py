"""docs/benchmarks.md, whose sections different programs write."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
COLD_STARTS = "from cold to the first token"
"""The section that `just bench-cold --write` writes."""


def with_section(page: str, title: str, text: str) -> str:
    """Return the page with this section as its last; an empty text leaves it out."""
    others = [part for part in re.split(r"^(?=## )", page, flags=re.MULTILINE) if not part.startswith(f"## {title}\n")]
    written = f"\n\n## {title}\n\n{text.rstrip()}" if text else ""
    return f"{''.join(others).rstrip()}{written}\n"


def section(page: str, title: str) -> str:
    """Return a section's text without its title; empty where the page has none."""
    match = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    return match[1].rstrip() if match else ""


def titles(page: str) -> list[str]:
    """Return the titles of the page's sections, in their order."""
    return re.findall(r"^## (.+)$", page, flags=re.MULTILINE)


def cpu_model() -> str:
    """Return the processor's name; empty where the kernel says none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if "model name" in line), "")
