"""Conversations that outlive their worker: saved before it leaves, restored into the next one."""
