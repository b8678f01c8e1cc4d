"""Tools for whole models: maps, importance of heads, conversion, checkpoints."""
