"""Targets for a fuzzer: each module states its invariant, `make fuzz` tries to break it."""
