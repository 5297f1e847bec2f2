"""Starts of vLLM that do not begin with importing it.

`keeper` is the agent's side: it keeps one launcher parked for its host's build of vLLM and hands it a start.
`parked` is the launcher itself, run by the engine's own Python. `fitness` says which starts a parked one can take.

What goes wrong on this path costs time and nothing else: the supervisor then starts the worker plainly, and the
instance's `path` says why.
"""
