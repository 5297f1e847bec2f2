"""The deployment's style."""

from tests.deploy.linted import STAMP, digest


def test_ansible_lint_has_passed_for_the_deployment_as_it_is() -> None:
    assert STAMP.read_text().strip() == digest(), "run `just lint-deploy`, and commit what it writes down"
