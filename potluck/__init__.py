"""potluck: the command line. It parses, calls, prints, and decides nothing."""

from potluck.__main__ import main

__all__ = ["main"]
