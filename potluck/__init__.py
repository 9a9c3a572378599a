"""potluck: the command line. It parses, calls, prints, and decides nothing."""
