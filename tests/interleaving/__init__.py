"""The protocol under every order of its steps: production code on simulated stores."""
