"""Starts of vLLM from a preloaded process.

`pool` is the agent's side: it keeps one launcher parked for the host's build of vLLM and lets it fork each start.
`process` is the launcher itself, run by the engine's own Python. `eligibility` decides which starts it can take.

A failure on this path only costs time: the supervisor then starts the worker plainly, and the instance's `path` has
the reason.
"""
