"""Shared parts of all listeners: addresses, limits, TLS, the service manager."""
