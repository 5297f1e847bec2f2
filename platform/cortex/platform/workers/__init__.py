"""Worker processes: starting them, watching them, ending all of them."""
