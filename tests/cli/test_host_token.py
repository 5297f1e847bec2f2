"""`cortex host token`, and what processes do with a token file that is not for them."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cortex.cli.exits import FAILED, USAGE, Failed
from cortex.cli.main import cli
from cortex.cli.settings import refuse_another_fleets_record
from cortex.platform.keys import host_file
from cortex.platform.settings import Agent, Settings


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.token"
    path.write_text("used\naccepted\n")
    return path


def host_token(fleet_file: Path, *arguments: str) -> str:
    """Run the command with this fleet token; return what it prints. Raises Failed."""
    done = CliRunner(env={"CORTEX_TOKEN_FILE": str(fleet_file)}).invoke(cli, ["host", "token", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_hosts_token_is_printed_for_every_token_of_the_fleet(fleet_file: Path) -> None:
    printed = host_token(fleet_file, "gpu-1")

    assert printed == host_file(("used", "accepted"), "gpu-1")
    assert len(printed.splitlines()) == 2
    assert not {"used", "accepted"} & set(printed.replace("\n", ":").split(":"))


def test_a_hosts_token_is_written_for_its_owner_alone_in_place_of_an_earlier_one(fleet_file: Path) -> None:
    path = fleet_file.with_name("host.token")
    path.write_text("earlier")
    path.chmod(0o644)

    printed = host_token(fleet_file, "gpu-1", "--output", str(path))

    assert path.read_text() == host_file(("used", "accepted"), "gpu-1")
    assert path.stat().st_mode & 0o777 == 0o600
    assert printed == f"{path}: the token of host 'gpu-1'. Only gpu-1 may have it.\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["fleet.token", "host.token"]


def test_without_a_fleet_token_there_is_nothing_to_derive_from_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(
        Failed, match="cannot be read: No such file or directory\nRun this where a router runs"
    ) as failed:
        host_token(tmp_path / "none", "gpu-1")

    assert failed.value.exit_code == FAILED
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_a_name_that_is_no_line_is_refused(name: str, fleet_file: Path) -> None:
    with pytest.raises(Failed, match="a host's name is one line of text") as failed:
        host_token(fleet_file, name)

    assert failed.value.exit_code == USAGE


def test_a_folder_that_is_missing_is_named(fleet_file: Path) -> None:
    path = fleet_file.parent / "missing" / "host.token"

    with pytest.raises(Failed, match=f"{path}: cannot be written: No such file or directory"):
        host_token(fleet_file, "gpu-1", "--output", str(path))


def test_a_router_refuses_to_start_with_a_hosts_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(host_file(("used",), "a"))

    with pytest.raises(Failed, match="is the token of a host, not the fleet token: a router needs the fleet token"):
        refuse_another_fleets_record(Settings(token_file=str(path)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (host_file(("used",), "a"), "is the token of host 'a', and this is host 'c'"),
        ("used\n", "line 1 is not the token of a host"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_an_agent_and_a_job_worker_refuse_to_start_with_a_token_that_is_not_their_hosts(
    content: str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    if content:
        path.write_text(content)
    settings = Settings(token_file=str(tmp_path / "none"), agent=Agent(name="c", token_file=str(path)))

    with pytest.raises(Failed, match=f"{reason}; `cortex host token c` on a machine with the fleet token makes one"):
        refuse_another_fleets_record(settings, of_host=True)

    assert not (tmp_path / "none").exists()
