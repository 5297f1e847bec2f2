"""Groups of the agent's HTTP routes."""
