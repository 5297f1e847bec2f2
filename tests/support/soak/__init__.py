"""A soak's parts: the fleet it is driven on, clients, faults, and what watches that nothing is ever wrong."""
