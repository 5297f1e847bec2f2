"""`park` in a catalogue: its values, engines without a tier, and the key that it replaced."""

import pytest

from cortex.functions.catalogue import CatalogueError, notes, read
from cortex.functions.spec import Park


def entry(line: str, engine: str = "vllm") -> str:
    return f'[[models]]\nid = "org/model"\nengine = "{engine}"\n{line}\n'


def problem(text: str) -> str:
    with pytest.raises(CatalogueError) as caught:
        read(text, file="models.toml", folder="/")
    (only,) = caught.value.problems
    return str(only)


@pytest.mark.parametrize(("line", "park"), [("", Park.AUTO), *((f'park = "{p}"', p) for p in Park)])
def test_every_value_is_read_and_the_default_is_auto(line: str, park: Park) -> None:
    catalogue = read(entry(line), file="models.toml", folder="/")

    assert catalogue.functions["org/model"].park is park
    assert notes(catalogue) == []


def test_an_unknown_value_is_a_problem_that_names_the_nearest_one() -> None:
    assert problem(entry('park = "slep"')) == (
        "models.toml:4: org/model: park: unknown park 'slep'; did you mean 'sleep'?"
    )


def test_a_value_that_is_near_none_is_a_problem_that_names_all() -> None:
    assert problem(entry('park = "hibernate"')) == (
        "models.toml:4: org/model: park: unknown park 'hibernate': use auto, sleep, freeze or stop"
    )


@pytest.mark.parametrize("value", ["true", "false"])
def test_the_key_of_earlier_releases_is_a_problem_that_says_what_to_write(value: str) -> None:
    assert problem(entry(f"sleep = {value}")) == (
        'models.toml:4: org/model: sleep has been replaced by park: write park = "auto" or "sleep" for true, '
        'park = "stop" for false'
    )


@pytest.mark.parametrize("engine", ["llamacpp", "command"])
def test_an_engine_that_cannot_sleep_is_noted_with_what_happens_instead(engine: str) -> None:
    command = 'command = ["serve", "{port}"]\n' if engine == "command" else ""
    catalogue = read(entry(f'{command}park = "sleep"', engine), file="models.toml", folder="/")

    assert notes(catalogue)[-1] == (
        f'org/model: park = "sleep" is kept, but engine "{engine}" cannot sleep: its instances stop'
    )


@pytest.mark.parametrize("engine", ["llamacpp", "command", "vllm"])
def test_any_engine_may_be_frozen(engine: str) -> None:
    command = 'command = ["serve", "{port}"]\n' if engine == "command" else ""
    catalogue = read(entry(f'{command}park = "freeze"', engine), file="models.toml", folder="/")

    assert not [note for note in notes(catalogue) if "park" in note]
