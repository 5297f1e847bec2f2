"""Reads a text as the catalogue of a host."""

import pytest

from cortex.functions.catalogue import Catalogue, CatalogueError, read

ONE = '[[models]]\nid = "m"\nengine = "fake"\n'
TWO = ONE + '[[models]]\nid = "n"\nengine = "fake"\n'


def load(text: str) -> Catalogue:
    return read(text, file="models.toml", folder="/etc/cortex")


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        load(text)
    return [str(problem) for problem in caught.value.problems]
