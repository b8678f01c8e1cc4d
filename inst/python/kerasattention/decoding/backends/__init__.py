"""One runner for each backend: prefill, single steps and the loop over new tokens."""
