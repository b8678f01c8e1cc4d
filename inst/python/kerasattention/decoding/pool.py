"""A pool of decoders for each model, so that compiled functions serve the next call too.

A call takes a decoder out of the pool and returns it. A concurrent call, in another thread or in
a callback, makes another decoder. No lock is held while a decoder runs.
"""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from kerasattention.decoding.cache.storage import LengthError
from kerasattention.decoding.decoder import IncrementalDecoder

# The number of unused decoders kept for a model.
KEPT = 2


@dataclasses.dataclass(frozen=True)
class _Idle:
    key: Any
    decoder: IncrementalDecoder


_idle: "weakref.WeakKeyDictionary[keras.Model, list[_Idle]]" = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # a model may be collected, and its entry go, while it is held


@contextlib.contextmanager
def borrowed_decoder(
    model: keras.Model, rows: int, length: int, token_input: str | int | None = None
) -> Iterator[IncrementalDecoder]:
    """A decoder with room for `length` tokens, which no other call uses meanwhile.

    It returns to the pool unless a run of it was broken off.
    """
    # Its caches are placed on the devices of the distribution in force.
    key = (rows, token_input, keras.distribution.distribution())
    decoder, grows = _take(model, key, length)
    if decoder is None:
        decoder = _make(model, key, length, grows)
    decoder.hold(model)
    try:
        yield decoder
    finally:
        if not decoder.is_broken:
            decoder.reset()
            decoder.hold(None)
            _return(model, _Idle(key, decoder))


def _take(model: keras.Model, key: Any, length: int) -> tuple[IncrementalDecoder | None, int]:
    """An idle decoder, or None and the length of the longest decoder that was too short."""
    shortest = 0
    with _lock:
        kept = _idle.setdefault(model, [])
        for idle in [x for x in reversed(kept) if x.key == key]:
            size = idle.decoder.max_length
            if length <= size <= 2 * max(length, 64):
                kept.remove(idle)
                if idle.decoder.is_current():
                    return idle.decoder, 0
            elif size < length:
                kept.remove(idle)  # a longer one takes its place
                shortest = max(shortest, size)
    return None, shortest


def _make(model: keras.Model, key: Any, length: int, shorter: int) -> IncrementalDecoder:
    rows, token_input, _ = key
    # A conversation grows turn by turn: room for twice as much compiles less often.
    wanted = max(length, 2 * shorter)
    try:
        return IncrementalDecoder(model, rows, -(-wanted // 64) * 64, token_input=token_input)
    except LengthError:
        return IncrementalDecoder(model, rows, length, token_input=token_input)


def _return(model: keras.Model, idle: _Idle) -> None:
    with _lock:
        kept = _idle.setdefault(model, [])
        kept.append(idle)
        del kept[:-KEPT]
