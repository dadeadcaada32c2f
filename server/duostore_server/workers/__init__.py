"""What goes on beside the requests: small pieces of work over one loop."""
