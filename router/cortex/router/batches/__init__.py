"""Batches: files of requests that run when nothing else needs the hosts."""
