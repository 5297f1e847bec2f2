"""The checklist of edge cases: each number is in the name of a test."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
CASES = 63


def test_every_case_of_the_checklist_has_a_test_with_its_number() -> None:
    text = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))

    actual = {int(number) for number in re.findall(r"^(?:async )?def test_case_(\d+)_", text, re.MULTILINE)}

    assert actual == set(range(1, CASES + 1))
