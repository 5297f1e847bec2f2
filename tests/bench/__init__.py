"""What the router costs: CPU time per request, beside a bare proxy in the same run (`just bench`)."""
