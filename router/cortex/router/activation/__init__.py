"""From no instance to one: choosing, asking agents, waiting, scaling."""
