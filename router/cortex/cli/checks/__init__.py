"""The checks of `cortex doctor`."""
