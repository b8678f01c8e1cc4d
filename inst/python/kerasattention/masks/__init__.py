"""Mask rules that users give to the layers, and their algebra: `&`, `|` and `~`."""
