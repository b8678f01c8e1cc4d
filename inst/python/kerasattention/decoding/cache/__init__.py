"""The KV caches of attention layers: their shapes, their use by a layer, their storage."""
