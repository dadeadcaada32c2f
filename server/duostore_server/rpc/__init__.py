"""The service on the wire: converts, calls one use case, converts back."""
