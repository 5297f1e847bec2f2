"""`cortex check --explain`: an entry as it takes effect, and where each value comes from."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cortex.cli.check import check
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.functions.spec import Function

TEXT = """\
[defaults]
idle_after_s = 120
harness = "candle"

[[models]]
id = "org/other"
engine = "fake"

[[models]]
id = "org/model"
quant = "Q4_K_M"
idle_after_s = 60
sampling = { temperature = 0.6 }
chat_template = "./chat.jinja"

[aliases]
small = "org/other"
chat = { use = "org/model", on_cold = { use = "small", within_s = 2 } }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(TEXT)
    return path


def run(file: Path, *args: str) -> Result:
    return CliRunner().invoke(check, [str(file), *args])


def test_each_value_has_the_line_that_it_comes_from(file: Path) -> None:
    result = run(file, "--explain", "org/model", "--json")
    values = json.loads(result.output)["values"]

    assert {key: v["origin"] for key, v in values.items() if v["origin"] != "default"} == {
        "id": f"{file}:10",
        "engine": f"{file}:3 [defaults]",
        "quant": f"{file}:11",
        "idle_after_s": f"{file}:12",
        "sampling": f"{file}:13",
        "chat_template": f"{file}:14",
    }
    assert (values["engine"]["value"], values["idle_after_s"]["value"]) == ("llamacpp", 60)
    assert values["chat_template"]["value"] == f"{file.parent}/chat.jinja"
    assert values.keys() == {*Function.__struct_fields__} - {"adapters"}


def test_the_text_is_an_entry_of_a_catalogue_with_the_same_effect(file: Path) -> None:
    printed = run(file, "--explain", "org/other").output

    assert tomllib.loads(printed)["idle_after_s"] == 120
    assert f"# {file}:2 [defaults]" in next(line for line in printed.splitlines() if line.startswith("idle_after_s"))
    again = file.with_name("again.toml")
    again.write_text("[[models]]\n" + printed)
    assert run(again).exit_code == 0
    assert json.loads(run(again, "--explain", "org/other", "--json").output)["values"]["idle_after_s"]["value"] == 120


def test_an_alias_is_explained_with_its_function_and_substitute(file: Path) -> None:
    first, second, *_ = run(file, "--explain", "chat").output.splitlines()

    assert first == "# chat is an alias of org/model"
    assert second == "# while that is not ready, org/other answers for chat (within_s = 2)"


def test_a_name_that_is_not_there_is_an_error_with_the_nearest_one(file: Path) -> None:
    result = run(file, "--explain", "org/modle")

    assert isinstance(result.exception, Failed)
    assert result.exception.exit_code == NOT_FOUND
    assert "did you mean 'org/model'?" in str(result.exception)
