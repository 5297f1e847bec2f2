"""The deployment passes ansible-lint."""

from tests.deploy.linted import STAMP, digest


def test_ansible_lint_has_passed_for_the_current_files() -> None:
    assert STAMP.read_text().strip() == digest(), "run `just lint-deploy`, and commit the file that it writes"
