"""The page of usage in a browser: its chart, by keyboard, in both themes and on a small phone."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Open, grave_faults
from tests.support.stack import Stack, eventually

Shot = Callable[..., None]
SMALL = {"width": 375, "height": 700}


@pytest.fixture
def used(fleet: Stack) -> Stack:
    """A fleet with recorded usage."""
    for name in ("org/small", "org/middle"):
        assert fleet.chat(name).is_success
    headers = {"authorization": f"Bearer {fleet.local_key()}"}

    def groups() -> int:
        return len(fleet.http.get("/admin/usage", params={"by": "function"}, headers=headers).json()["groups"])

    eventually(lambda: groups() >= 2, within_s=20, what="the usage to be written")
    return fleet


def opened(open_page: Open, stack: Stack, query: str = "", **how: Any) -> Any:
    page = open_page(stack, **how)
    page.goto(f"{stack.url}/status/usage{query}")
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["laptop", "phone"])
def test_the_chart_is_drawn_and_accessible_in_both_themes(
    used: Stack, open_page: Open, shot: Shot, size: str, theme: str
) -> None:
    page = opened(open_page, used, "?by=function&span=day", size=size, theme=theme)
    if size == "phone":
        page.set_viewport_size(SMALL)

    bars = page.locator(".bars").first.locator("rect")
    assert bars.count() >= 2
    assert all((box := bar.bounding_box()) and box["width"] > 1 and box["height"] > 0 for bar in bars.all())
    assert len({bar.evaluate("e => getComputedStyle(e).fill") for bar in bars.all()}) >= 2
    assert "org/small" in page.locator(".legend").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not grave_faults(page)
    shot(page, f"usage-{size}-{theme}", whole=True)


def test_the_choices_work_by_keyboard(used: Stack, open_page: Open) -> None:
    page = opened(open_page, used)
    page.keyboard.press("Tab")  # the link back to the status
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "function"

    page.keyboard.press("Enter")
    page.wait_for_url("**/status/usage?span=week&by=function")

    assert page.locator('[aria-current="true"]').all_inner_texts() == ["function", "week"]
    page.get_by_role("cell", name="org/small").or_(page.get_by_role("rowheader", name="org/small")).first.wait_for()


def test_the_status_page_links_to_usage_and_back(used: Stack, open_page: Open) -> None:
    page = open_page(used)

    page.get_by_role("link", name="Usage").click()
    page.get_by_role("heading", name="cortex usage").wait_for()
    page.get_by_role("link", name="Status").click()
    page.wait_for_url(f"{used.url}/status")
