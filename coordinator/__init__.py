"""coordinator: the gateway."""
