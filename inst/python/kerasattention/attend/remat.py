"""Seeds of the dropout of a function that a backward pass computes again.

`keras.remat(f)` runs `f` a second time for its gradient. A generator that draws again then
gives that gradient another dropout than the output had. So the seeds drawn in the first run
are kept and used in the second.

No backend tells which run it is. The call stack tells: torch's
`checkpoint()` and TensorFlow's `recompute_grad()`. JAX traces `f` once, for both runs.
"""

import inspect
import sys
import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasattention.attend.tensors import Tensor

_KEPT = 4096  # first runs of one generator whose second is to come
_LOCK = threading.Lock()
_records: "weakref.WeakKeyDictionary[Any, OrderedDict[int, Any]]" = weakref.WeakKeyDictionary()

_WAY_OUT = (
    'Call the layer in `with keras.RematScope("full"):` instead of `keras.remat()`, or use '
    "`dropout = 0`."
)


def draw_once(owner: Any, draw: Callable[[], Tensor]) -> Tensor:
    """The result of `draw()`, or its result in the first run of a function computed again.

    Args:
        owner: Whose numbers these are, such as a generator of seeds.
        draw: Draws the next.

    Raises:
        RuntimeError: In a second run whose first is not known.
    """
    draws = {"torch": _draw_torch, "tensorflow": _draw_tensorflow, "jax": _draw_jax}
    return draws[keras.backend.backend()](owner, draw)


def _frames() -> Iterator[types.FrameType]:
    """The functions that are being executed, the innermost first."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _keep(owner: Any, key: int, record: Any) -> None:
    kept = _records.setdefault(owner, OrderedDict())
    kept[key] = record
    if len(kept) > _KEPT:
        kept.popitem(last=False)


def _kept(owner: Any, key: int) -> Any:
    return _records.get(owner, {}).get(key)


def _unknown() -> RuntimeError:
    return RuntimeError(
        "The dropout of an attention layer cannot be drawn again as it was before: nothing is "
        f"known of the first run of this function under `keras.remat()`. {_WAY_OUT}"
    )


def _draw_torch(owner: Any, draw: Callable[[], Tensor]) -> Tensor:
    """Torch gives its own generator the same state in both runs: a number from it is the key."""
    import torch
    import torch.utils.checkpoint

    if torch.compiler.is_compiling():
        return draw()
    file = torch.utils.checkpoint.__file__
    names = [f.f_code.co_name for f in _frames() if f.f_code.co_filename == file]
    if not names:
        return draw()
    key = int(torch.randint(2**62, (), device="cpu"))
    with _LOCK:
        seed = _kept(owner, key)
        if seed is None:
            if names[-1] != "checkpoint":  # a second run: it starts in a backward pass
                raise _unknown()
            seed = draw()
            _keep(owner, key, seed)
    return seed


class _Draws:
    """The numbers that one call of a function drew, in their order."""

    def __init__(self, call: dict[str, Any]) -> None:
        self.call = call  # kept alive, so that no other call has its address
        self.seeds: list[Tensor] = []
        self.used = 0

    def next(self) -> Tensor:
        seed = self.seeds[self.used % len(self.seeds)]
        self.used += 1
        return seed


def _draw_tensorflow(owner: Any, draw: Callable[[], Tensor]) -> Tensor:
    """Both runs of a call share the dictionary of its named arguments, also where it is empty."""
    first, second = _codes_tensorflow()
    frames = [f for f in _frames() if f.f_code in first or f.f_code in second]
    with _LOCK:
        return _resolve_tensorflow(owner, draw, frames, first)


def _resolve_tensorflow(
    owner: Any,
    draw: Callable[[], Tensor],
    frames: list[types.FrameType],
    first: frozenset[types.CodeType],
) -> Tensor:
    if not frames:
        return draw()
    call = frames[0].f_locals.get("kwargs")
    record = _kept(owner, id(call))
    if frames[0].f_code not in first:
        if record is None or record.call is not call:
            raise _unknown()
        return record.next()
    if call is None or any(keras.ops.is_tensor(x) for x in keras.tree.flatten(call)):
        raise RuntimeError(
            "The dropout of an attention layer under `keras.remat()` needs the function's "
            f"tensors by position, not by name. {_WAY_OUT} Received by name: {sorted(call or ())}"
        )
    seed = _resolve_tensorflow(owner, draw, frames[1:], first)  # of a call around this one
    if record is None:
        record = _Draws(call)
        _keep(owner, id(call), record)
    record.seeds.append(seed)
    return seed


def _codes_tensorflow() -> tuple[frozenset[types.CodeType], frozenset[types.CodeType]]:
    """Codes of the first and second run: the function in `recompute_grad()`, and those in it."""
    import tensorflow as tf

    first = _inner_codes(inspect.unwrap(tf.recompute_grad).__code__)
    second = {code for outer in first for code in _inner_codes(outer)}
    return frozenset(first), frozenset(second | {c for code in second for c in _inner_codes(code)})


def _inner_codes(code: types.CodeType) -> set[types.CodeType]:
    return {x for x in code.co_consts if isinstance(x, types.CodeType)}


def _draw_jax(owner: Any, draw: Callable[[], Tensor]) -> Tensor:
    """A generator outside of `fit()` must not keep a number of a trace that is over."""
    import jax
    from jax.core import Tracer

    if not isinstance(owner, keras.random.SeedGenerator):  # Keras's own generator says it
        return draw()
    file = inspect.getsourcefile(inspect.unwrap(jax.checkpoint))
    traced = any(f.f_code.co_filename == file for f in _frames())
    if not traced or isinstance(owner.state.value, Tracer):
        return draw()
    warnings.warn(
        "JAX traces a function under `keras.remat()` once: every later call of that function "
        f"drops the same attention weights. {_WAY_OUT}",
        stacklevel=2,
    )
    with jax.ensure_compile_time_eval():
        return draw()
