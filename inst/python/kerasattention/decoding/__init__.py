"""Generation of tokens with a key/value cache, for any model."""

from kerasattention.decoding.decoder import IncrementalDecoder
from kerasattention.decoding.generate import generate

__all__ = ["IncrementalDecoder", "generate"]
