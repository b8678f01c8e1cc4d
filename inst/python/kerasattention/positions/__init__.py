"""Kinds of positions: each turns queries and keys, or gives a bias for a block."""
