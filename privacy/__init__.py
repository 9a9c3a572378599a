"""privacy: what leaves a device says little about its owner.

Clipping today; noise, masks, secret shares and the accounting of what was spent have their place
here. Pure functions: whoever calls them brings the randomness.
"""

from privacy.clip import clip_l2, l2_norm

__all__ = ["clip_l2", "l2_norm"]
