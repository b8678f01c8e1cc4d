"""Positions: each rotates queries and keys, or adds a bias to the logits of a block."""
