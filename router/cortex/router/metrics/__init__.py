"""What is counted, and how it is shown: over all worker processes, and over the last hour."""
