"""One hypothesis profile for all tests: the same examples every time, and no clock."""

from hypothesis import settings

settings.register_profile("potluck", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("potluck")
