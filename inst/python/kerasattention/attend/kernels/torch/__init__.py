"""Kernels for torch."""
