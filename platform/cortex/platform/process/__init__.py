"""Processes of the operating system, for every program of cortex."""
