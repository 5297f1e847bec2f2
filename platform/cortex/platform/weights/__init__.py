"""Weights: where they are, how they are fetched, what they reveal about their model."""
