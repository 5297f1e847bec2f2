"""What a fleet would have done with other hosts or another catalogue: `cortex replay`."""
