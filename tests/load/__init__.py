"""Load by tools of others against a running cortex, with requests that their clients cancel: `just test-load`.

A run fails for an error in the tool's own report or in the router's metrics, for a run without cancellations, and for
requests that the router still holds afterwards.
"""
