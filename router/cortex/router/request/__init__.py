"""One request, from the body that was read to the answer that was sent."""
