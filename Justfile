# Everything one does with cortex from a checkout. `just` alone lists it.

default:
    @just --list --unsorted

# run everything on this machine; arguments go to `cortex up`
up *args:
    uv run cortex up {{args}}

# what has to hold before a commit: lint, types, layers, tests
check: lint types layers test

# the tests; arguments go to pytest
test *args:
    uv run pytest -n 2 --dist loadgroup {{args}}

# random requests and random faults for so many seconds; CORTEX_SOAK_SEED=n makes the same choices again
soak seconds="120":
    CORTEX_SOAK_S={{seconds}} uv run pytest tests/e2e/test_soak.py --timeout 3600

# style
lint:
    uv run ruff check .
    uv run ruff format --check .

# put the style right
fmt:
    uv run ruff check --fix .
    uv run ruff format .

# types, strictly, in all folders
types:
    uv run mypy

# who may import whom
layers:
    uv run lint-imports

# write the generated pages of docs/ anew; a test keeps them so
docs:
    uv run python -m tests.support.pages
