"""Suites of others for the formats of the client APIs, run against a running cortex: `just test-conformance`.

Each case either passes or is listed in `exceptions.py` with its errors and the reason. A run fails for an unlisted case
that fails, and for a listed one that passes.
"""
