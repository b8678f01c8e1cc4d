"""The model as a list of layer calls, and which of them run once per prompt or per token."""
