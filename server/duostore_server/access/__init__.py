"""The use cases. They know the stores only by the ports; no driver and no transport in here."""
