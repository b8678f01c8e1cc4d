"""The kernels: one per module, those of one backend in its folder."""
