"""What clients talk to: HTTP, dialects, and the activator that holds requests while a function starts."""
