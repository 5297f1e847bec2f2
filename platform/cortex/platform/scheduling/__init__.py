"""The agent's decisions, pure: placement, eviction, and the state machine of each instance."""
