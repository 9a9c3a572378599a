"""edge_sdk: what an app embeds."""
