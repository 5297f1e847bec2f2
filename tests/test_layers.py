"""A module whose docstring says "Pure" reaches no I/O, no clock and no randomness. pyproject.toml has the layers."""

import ast
import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("functions", "platform", "router")
IMPURE = {
    "asyncio", "socket", "subprocess", "time", "random", "secrets", "os", "redis", "httpx", "aiohttp", "litestar",
    "structlog",
}  # fmt: skip
VALUES = {
    "cortex.platform.settings",
    "cortex.platform.serving.address",
    "cortex.platform.host.engines",
    "cortex.router.request_record",
}
"""Modules that do I/O or read the clock, and from which pure modules take structs or pure functions alone."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:]).removesuffix(".__init__")


def pure_modules() -> list[str]:
    return [
        module_name(path)
        for area in AREAS
        for path in sorted((ROOT / area / "cortex").rglob("*.py"))
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "")
    ]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ("cortex.functions", "cortex.platform", "cortex.router", "cortex.cli")
    graph = grimp.build_graph(*packages, include_external_packages=True)
    for module in VALUES:
        graph.remove_module(module)
    return graph


def test_a_module_described_as_pure_imports_nothing_impure(graph: grimp.ImportGraph) -> None:
    pure = pure_modules()

    chains = [
        " imports ".join(chain)
        for module in pure
        for impure in sorted(graph.find_upstream_modules(module) & IMPURE)
        if (chain := graph.find_shortest_chain(module, impure))
    ]

    assert len(pure) > 40
    assert chains == []
