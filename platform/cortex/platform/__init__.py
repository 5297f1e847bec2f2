"""What runs functions: the record in Redis, the agent of a host, placement, and the workers themselves."""
