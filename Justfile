# Everything one does with cortex from a checkout. `just` alone lists it.

# What is given to a recipe reaches its program as it was given: `just test -k "one or two"`.
set positional-arguments

# `bash -c` becomes its command, where `sh` may wait beside it: what is sent to end a recipe reaches the program itself.
set shell := ["bash", "-cu"]

default:
    @just --list --unsorted

# run everything on this machine; arguments go to `cortex up`
up *args:
    uv run cortex up "$@"

# what has to hold before a commit: lint, types, layers, tests
check: lint types layers lint-deploy test test-long

# the tests; arguments go to pytest. Four processes on two cores: a test that waits leaves its core to the others
test *args:
    uv run pytest -n 4 --dist loadgroup "$@"

# the tests that cost much of a minute each: kills and faults under load, the README typed in
test-long *args:
    uv run pytest -n 2 --dist loadgroup -m long "$@"

# the status page in a real browser; pictures of it land in artifacts/
test-browser *args:
    command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium) || true
    uv run --group browser pytest -n0 tests/browser --timeout 300 "$@"

# random requests and random faults for so many seconds; CORTEX_SOAK_SEED=n makes the same choices again
soak seconds="120":
    CORTEX_SOAK_S={{seconds}} uv run pytest -m long tests/e2e/test_soak.py --timeout 3600

# the control plane in a deterministic simulation: 10,000 seeds and a table; `--seed N` shows one; `--help` the rest
simulate *args:
    PYTHONHASHSEED=0 uv run python -W ignore -m tests.simulation "$@"

# real vLLM on the CPU: installed once, into an environment of its own; arguments go to pytest
test-vllm *args:
    CORTEX_TEST_VLLM="$(tests/vllm/install.sh)" uv run pytest -n0 tests/vllm --timeout 1200 "$@"

# how long a function on real vLLM takes to its first token: plain, launcher, parked, swaps; `--write` the page's section
bench-cold *args:
    CORTEX_TEST_VLLM="${CORTEX_TEST_VLLM:-$(tests/vllm/install.sh)}" uv run python -m tests.bench_cold "$@"

# what reading weights into the page cache is worth while an engine imports; --folder DIR names the disk
bench-readahead *args:
    uv run python -m tests.bench_readahead "$@"

# what turns do for functions that share memory, beside none: waits, answers, starts (ten minutes; names pick scenarios)
bench-turns *args:
    uv run python -m tests.bench_turns "$@"

# the same questions to llama-cpp-python's server; its build takes 10 to 16 minutes of two cores, once
test-llama-cpp-python *args:
    CORTEX_TEST_LLAMA_CPP_PYTHON="$(tests/support/install_llama_cpp_python.sh)" \
        uv run pytest -n0 tests/e2e/test_servers.py -k llama_cpp "$@"

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

# take the README's picture of the status page anew, of a fleet with declared devices
picture:
    uv run --group browser python -m tests.support.picture

# bring every machine of an inventory to this checkout; arguments go to ansible-playbook (--limit, --tags, --check --diff)
deploy inventory *args:
    uv run python -m deploy.run deploy "$@"

# push models.toml alone, in seconds
deploy-models inventory *args:
    uv run python -m deploy.run models "$@"

# every machine back to the version it had before
rollback inventory *args:
    uv run python -m deploy.run rollback "$@"

# what runs where, and whether it is well
fleet-status inventory *args:
    uv run python -m deploy.run status "$@"

# drain, stop and remove cortex; with --limit HOST only there
undeploy inventory *args:
    uv run python -m deploy.run undeploy "$@"

# make a fleet's secrets beside its inventory, encrypted, once
secrets inventory:
    uv run python -m deploy.run secrets {{inventory}}

# make an authority and a certificate for every machine beside an inventory, for `cortex_tls: true`; again: renew them
certificates inventory:
    uv run python -m deploy.run certificates "$@"

# change the token that routers and agents share, while everything runs; later again with --finish
rotate-token inventory *args:
    uv run python -m deploy.run rotate-token "$@"

# this checkout and all it needs as wheels with hashes, for hosts without any index
wheelhouse *args:
    uv run python -m deploy.wheelhouse "$@"

# a fleet of real Debian hosts on this machine, from nothing to nothing (root; half an hour and more)
test-fleet *args:
    uv run python -m tests.fleet "$@"

# style of the deployment, by ansible-lint at its production profile; a test holds that it passed for these very files
lint-deploy:
    uv run --group lint ansible-lint -c deploy/ansible/.ansible-lint --offline deploy/ansible
    uv run python -m tests.deploy.linted

# the clients people use, for real and without network: a table client × case (installs a gigabyte, once)
test-clients *args:
    uv run python -m tests.clients "$@"

# suites of others for the client APIs' formats, by real llama.cpp and the fake engine: a table case × function (PyPI)
test-conformance *args:
    uv run python -m tests.conformance "$@"

# real servers for speech and transcriptions, by OpenAI's SDKs for Python and Node (PyPI, npm); arguments go to pytest
test-media *args:
    CORTEX_TEST_MEDIA="$(tests/media/install.sh)" uv run pytest -n0 tests/media --timeout 200 "$@"

# load by tools of others (guidellm, aiperf), a minute each with cancellations, and a table of numbers (PyPI)
test-load *args:
    uv run python -m tests.load "$@"

# what a dialect costs per chunk, beside passing chat on
bench-dialects *args:
    uv run python -m tests.bench_dialects "$@"

# a small fleet with a real Prometheus reading it: rules, panels, alerts (Debian's prometheus; a minute and a half);
# and the dashboard against Grafana's own schema (npm)
test-monitoring:
    uv run pytest -n0 tests/monitoring/check_monitoring.py tests/monitoring/check_dashboard.py

# what the router costs beside nginx, a bare relay and others; writes docs/benchmarks.md (`--help`: scenarios, peers)
bench *args:
    command -v nginx >/dev/null || (apt-get update -qq && apt-get install -y -qq nginx-light) || true
    uv run python -m tests.bench "$@"

# a flame graph of the router under one scenario of `just bench` ("plain", "stream of 100"), in artifacts/
profile *args:
    uv run python -m tests.bench --profile "${1:-plain}"

# hashes of the lock file, licences, known holes in what is locked (code 1 for one; 3 where they cannot be looked up)
audit *args:
    uv run python deploy/audit.py {{args}}

# what a release consists of: wheel, source, bill of materials (CycloneDX) and the hashes of all, in dist/release/
release *args:
    uv run python -m deploy.release {{args}}

# the attacks and the table of who may do what, and random requests to every route of router and agent (minutes)
test-security *args:
    uv run pytest -n 2 --dist loadgroup tests/e2e/security tests/platform/serving/test_http_limits.py "$@"
    uv run python -W ignore -m tests.fuzz
