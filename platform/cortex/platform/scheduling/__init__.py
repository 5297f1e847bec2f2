"""The agent's decisions, pure: what starts where, who makes room, what follows from what happened."""
