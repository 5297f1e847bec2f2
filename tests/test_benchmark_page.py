"""docs/benchmarks.md is written by two programs: neither loses the other's sections."""

from tests.bench.page import section, with_section

PAGE = "# Benchmarks\n\nA head.\n\n## plain\n\nA table.\n"


def test_a_section_is_added_replaced_and_found() -> None:
    once = with_section(PAGE, "cold", "One.")
    twice = with_section(once, "cold", "Two.\n\nMore.")

    assert twice == PAGE + "\n## cold\n\nTwo.\n\nMore.\n"
    assert section(twice, "cold") == "Two.\n\nMore."
    assert section(once, "plain") == "A table."


def test_a_page_written_anew_keeps_the_section_of_the_other_program() -> None:
    old = with_section(PAGE, "cold", "One.")

    assert with_section(PAGE, "cold", section(old, "cold")) == old
    assert with_section(PAGE, "cold", section(PAGE, "cold")) == PAGE
