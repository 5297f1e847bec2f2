"""Weights: where they are, how they come, what they say of their model."""
