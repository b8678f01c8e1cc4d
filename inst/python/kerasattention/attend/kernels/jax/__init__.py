"""Kernels for JAX."""
