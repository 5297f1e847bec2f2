"""The status page in a browser: it follows the fleet, shows a plan before each action, and is accessible."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import DIES, SIZES, Open, grave_faults
from tests.support.stack import Stack, eventually

Shot = Callable[..., None]


def row(page: Any, name: str) -> Any:
    return page.locator(f'#functions > tr[data-id="{name}"]')


def live(page: Any) -> None:
    page.wait_for_selector('#link[data-state="live"]')


def becomes(page: Any, name: str, tone: str) -> None:
    page.wait_for_selector(f'#functions > tr[data-id="{name}"][data-tone="{tone}"]')


def test_the_page_updates_without_a_reload(fleet: Stack, open_page: Open) -> None:
    page = open_page(fleet)
    live(page)
    page.evaluate("window.notLoadedAgain = true")

    fleet.chat("org/small")

    becomes(page, "org/small", "idle")
    assert "reaped in" in row(page, "org/small").locator(".c-state").inner_text()
    assert page.locator("#hosts .seg-text", has_text="org/small").count() == 1
    assert page.evaluate("window.notLoadedAgain")


def test_a_start_is_shown_with_its_expected_time(fleet: Stack, open_page: Open, shot: Shot) -> None:
    fleet.chat("org/slow")
    eventually(lambda: fleet.function("org/slow")["expected_start_s"], what="the start to be in the ledger")
    fleet.cli("fn", "cool", "org/slow")
    fleet.until("org/slow", "cold")
    page = open_page(fleet)
    live(page)

    fleet.cli("fn", "warm", "org/slow")

    coming = page.locator("#starts li", has_text="org/slow")
    coming.wait_for()
    left = coming.locator(".start-left time")
    eventually(lambda: re.fullmatch("[1-6] s", left.inner_text()), within_s=5, what="the time left")
    coming.get_by_text(re.compile(r"starting: loading weights, \d+ %")).wait_for()
    shot(page, "starting-laptop-light")
    becomes(page, "org/slow", "idle")
    page.wait_for_selector("#starts li", state="detached")
    row(page, "org/slow").locator("button.link").click()
    steps = page.locator("#panel .legend")
    steps.get_by_text("loading weights").wait_for()
    assert "starting" in steps.inner_text()


def test_percentiles_are_shown_next_to_the_rate(fleet: Stack, open_page: Open, shot: Shot) -> None:
    for _ in range(3):
        fleet.chat("org/small")
    assert fleet.chat("org/small", stream=True).is_success
    page = open_page(fleet)
    live(page)

    table = page.locator("#traffic .latency")
    rows = table.locator("tbody tr")
    eventually(lambda: rows.count() == 2, within_s=25, what="a bucket of requests that is over")
    shot(page, "latency-laptop-light")

    assert table.locator("thead").inner_text().split() == ["last", "hour", "p50", "p95", "p99"]
    assert re.match(r"to the first token(\s+[\d.]+ m?s){3}$", rows.nth(0).inner_text())
    assert re.match(r"to the end(\s+[\d.]+ m?s){3}$", rows.nth(1).inner_text())
    assert "/ min" in page.locator("#traffic").inner_text()


def test_a_failing_function_is_listed_at_the_top_with_a_link_to_its_log(
    fleet: Stack, open_page: Open, shot: Shot
) -> None:
    for _ in range(3):
        fleet.chat("org/broken")
    page = open_page(fleet)
    live(page)

    assert "org/broken does not start" in page.locator("#verdict").inner_text()
    assert DIES[-1] not in page.locator("#troubles").inner_text()
    shot(page, "failing-laptop-light")
    page.locator("#troubles").get_by_role("button", name="Log").first.click()
    page.locator("#panel pre.log").wait_for()
    assert DIES[-1] in page.locator("#panel pre.log").inner_text()


def test_warm_and_cool_show_their_plan_first(fleet: Stack, open_page: Open, shot: Shot) -> None:
    fleet.cli("fn", "cool", "org/middle")
    fleet.until("org/middle", "cold")
    page = open_page(fleet)
    live(page)

    row(page, "org/middle").get_by_role("button", name="Warm").click()
    page.get_by_role("heading", name="Warm org/middle").wait_for()
    assert "It would start on here" in page.locator("#panel").inner_text()
    assert fleet.state("org/middle") == "cold"
    shot(page, "plan-laptop-light")
    page.locator("#panel").get_by_role("button", name="Warm", exact=True).click()
    becomes(page, "org/middle", "idle")

    row(page, "org/middle").get_by_role("button", name="Cool").click()
    page.locator("#panel").get_by_role("button", name="Cool", exact=True).click()
    becomes(page, "org/middle", "cold")
    page.get_by_text("Cool org/middle: done").wait_for()


def test_an_impossible_action_is_disabled_with_the_reason(fleet: Stack, open_page: Open) -> None:
    page = open_page(fleet)
    live(page)

    row(page, "org/vast").get_by_role("button", name="Warm").click()
    panel = page.locator("#panel")
    panel.get_by_text("No host can run it now.").wait_for()

    assert "more than there can ever be" in panel.inner_text()
    assert panel.get_by_role("button", name="Warm", exact=True).is_disabled()


def test_a_host_is_cordoned_and_uncordoned(fleet: Stack, open_page: Open, shot: Shot) -> None:
    page = open_page(fleet)
    live(page)
    panel = page.locator("#panel")

    page.locator("#hosts").get_by_role("button", name="here").click()
    panel.get_by_role("button", name="Cordon…").click()
    panel.get_by_role("button", name="Cordon", exact=True).click()
    page.locator("#hosts .tag", has_text="cordoned").wait_for()
    shot(page, "cordoned-laptop-light")

    page.locator("#hosts").get_by_role("button", name="here").click()
    panel.get_by_role("button", name="Uncordon…").click()
    panel.get_by_role("button", name="Uncordon", exact=True).click()
    page.locator("#hosts .tag", has_text="cordoned").wait_for(state="detached")


def test_a_drain_shows_the_outcome_for_each_instance(fleet: Stack, open_page: Open) -> None:
    fleet.chat("org/small")
    page = open_page(fleet)
    live(page)

    page.locator("#hosts").get_by_role("button", name="here").click()
    page.get_by_role("button", name="Drain…").click()
    page.get_by_role("heading", name="Drain here").wait_for()

    assert "org/small: no other host has room, so it goes cold" in page.locator("#panel").inner_text()


def test_a_cold_prompt_shows_its_progress(fleet: Stack, open_page: Open, shot: Shot) -> None:
    fleet.cli("fn", "cool", "org/slow", "--now")
    fleet.until("org/slow", "cold")
    page = open_page(fleet, theme="dark")
    live(page)

    page.locator(".top").get_by_role("button", name="Try a prompt").click()
    page.locator("#play-function").fill("slow")
    page.get_by_role("button", name="Send").click()
    steps = page.locator("#play-steps")
    steps.get_by_text("sent; slow is cold").wait_for()
    steps.get_by_text("held: starting").first.wait_for()
    shot(page, "held-laptop-dark")
    steps.get_by_text("first token").wait_for()
    steps.get_by_text("done").wait_for()

    assert "The harbour is quiet" in page.locator("#play-answer").inner_text()
    assert "tokens/s" in page.locator("#play-figures").inner_text()
    shot(page, "answered-laptop-dark")


def test_a_prompt_without_a_function_shows_an_error(fleet: Stack, browser: Any) -> None:
    page = browser.new_page()
    page.goto(fleet.url + "/status")
    live(page)

    page.locator(".top").get_by_role("button", name="Try a prompt").click()
    page.locator("#play-function").fill("org/nobody")
    page.get_by_role("button", name="Send").click()

    page.locator("#play-steps .failing").wait_for()
    assert "org/nobody" in page.locator("#play-steps .failing").inner_text()
    page.close()


def test_every_control_is_reachable_by_keyboard(fleet: Stack, open_page: Open) -> None:
    fleet.cli("fn", "cool", "org/small", "--now")
    fleet.until("org/small", "cold")
    page = open_page(fleet)
    live(page)

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    page.keyboard.type("small")
    for _ in range(page.locator("#functions-section .chips button").count() + 1):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "org/small"
    page.keyboard.press("Enter")
    page.locator("#panel-title", has_text="org/small").wait_for()
    assert page.evaluate("document.activeElement.id") == "panel-title"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Warm org/small").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    becomes(page, "org/small", "idle")
    assert page.evaluate("document.activeElement.textContent") == "org/small"


def test_an_element_keeps_the_focus_while_its_row_changes(fleet: Stack, open_page: Open) -> None:
    fleet.chat("org/small")
    page = open_page(fleet)
    live(page)
    row(page, "org/small").locator("button.link").focus()

    fleet.cli("fn", "cool", "org/small", "--now")
    becomes(page, "org/small", "cold")

    assert page.evaluate("document.activeElement.textContent") == "org/small"


def test_functions_are_found_by_name_alias_and_state(fleet: Stack, open_page: Open) -> None:
    page = open_page(fleet)
    live(page)
    shown = page.locator("#functions > tr:visible")

    page.get_by_label("Find", exact=True).fill("slow")
    assert shown.count() == 1
    page.get_by_label("Find", exact=True).fill("")
    page.get_by_role("button", name="cold", exact=True).click()
    assert "org/vast" in " ".join(shown.all_inner_texts())
    page.get_by_label("Find", exact=True).fill("no such thing")
    page.get_by_text("No function matches.").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_problem_in_any_size_and_theme(
    fleet: Stack, open_page: Open, shot: Shot, size: str, theme: str
) -> None:
    fleet.chat("org/small")
    page = open_page(fleet, size, theme)
    live(page)
    becomes(page, "org/small", "idle")

    assert not grave_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(page, f"{size}-{theme}", whole=size == "phone")

    row(page, "org/small").locator("button.link").click()
    page.locator("#panel-title").wait_for()
    assert not grave_faults(page)
    shot(page, f"details-{size}-{theme}")
    page.locator("#panel .panel-close button").click()
    page.locator(".top").get_by_role("button", name="Try a prompt").click()
    assert not grave_faults(page)


def test_without_scripts_the_page_is_a_snapshot(fleet: Stack, open_page: Open, shot: Shot) -> None:
    fleet.chat("org/small")
    page = open_page(fleet, java_script_enabled=False)

    assert "This is a snapshot" in page.locator(".note-bar").inner_text()
    assert row(page, "org/small").get_attribute("data-tone") == "idle"
    assert page.locator("#hosts .seg-text", has_text="org/small").count() == 1
    assert not page.locator(".top [data-try]").is_visible()
    assert not row(page, "org/small").get_by_role("button", name="Cool").is_visible()
    shot(page, "noscript-laptop-light")


def test_a_page_reconnects_after_the_router_was_away(fleet: Stack, browser: Any) -> None:
    page = browser.new_page()
    page.goto(fleet.url + "/status")
    live(page)

    fleet.child("router").kill()
    page.wait_for_selector('#link[data-state="lost"]')

    page.wait_for_selector('#link[data-state="live"]', timeout=30_000)
    page.close()
