"""What every listener has in common: addresses, limits, TLS, the service manager."""
