"""The agent of a host: its loop, its HTTP API, and what it looks after."""
