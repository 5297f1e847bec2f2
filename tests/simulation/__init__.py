"""The control plane in one deterministic simulation. See README.md."""
