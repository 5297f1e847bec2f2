"""Reads the models of other tools into a draft of a `models.toml`."""
