"""Metrics over all worker processes, and the last hour's traffic."""
