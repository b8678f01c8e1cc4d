"""Ways to compute attention: one kernel per module, those of one backend in its folder."""
