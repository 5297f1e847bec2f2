"""The deployment passes ansible-lint, and gives no secret to a command line."""

from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.linted import ROOT, STAMP, digest


def environments(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the variables that tasks set for their programs, at any depth of a playbook."""
    if isinstance(part, list):
        for item in part:
            yield from environments(item)
    elif isinstance(part, dict):
        variables = part.get("environment")
        yield from variables.items() if isinstance(variables, dict) else ()
        for item in part.values():
            yield from environments(item)


def test_ansible_lint_has_passed_for_the_current_files() -> None:
    assert STAMP.read_text().strip() == digest(), "run `just lint-deploy`, and commit the file that it writes"


def test_no_task_has_a_secret_in_its_environment() -> None:
    # Ansible writes it to the command line of a shell, which every user of the machine can read.
    files = [path for path in ROOT.rglob("*.yml") if "inventory" not in path.relative_to(ROOT).parts]
    variables = [pair for path in files for pair in environments(yaml.safe_load(path.read_text()))]

    assert "UV_NO_CONFIG" in dict(variables)
    assert [name for name, value in variables if any(w in str(value) for w in ("password", "token", "_key"))] == []
