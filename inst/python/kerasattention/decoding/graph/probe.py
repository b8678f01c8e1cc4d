"""Trials of unknown layers on random tokens: the whole sequence against parts of it.

A layer whose result differs when the tokens come one at a time is refused: an error is better
than wrong text.

It has more than 300 lines because all checks of a trial stand in one class.
"""

import contextlib
import functools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops, tree

from kerasattention._keras import flatten_layers, get_keras_mask, set_keras_mask
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor, numpy_of, tensor_of
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.graph import layer_support, trial_calls
from kerasattention.decoding.graph.program import Instruction, Program
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext, attention_context
from kerasattention.layers.sharding import key_head_axes

# Lengths of a trial: primes, so that no axis is taken for another. A trial does not detect a layer
# that reads tokens further back than this.
TOKENS, OTHERS, FREE, PROMPT = 67, 7, 3, 31
# Parts of the tokens, whose results must be those within the whole sequence. The last ones show
# what accumulates.
_PARTS = (slice(0, PROMPT), slice(2, 3), slice(40, 47), slice(-5, -4), slice(-1, None))
# Sizes of runs that follow each other on caches.
_RUNS = (PROMPT, 1, 1, 17, 1, 1, 13, 1, 1)


@contextlib.contextmanager
def without_changes(instruction: Instruction) -> Iterator[None]:
    """Refuses a layer that changes a variable when it is called, and restores the variable."""
    variables = getattr(instruction.operation, "non_trainable_variables", [])
    before = [np.array(numpy_of(x)) for x in variables]
    refusal = None
    try:
        yield
    except ValueError as error:
        refusal = error
    for variable, value in zip(variables, before, strict=True):
        if not np.array_equal(numpy_of(variable), value):
            variable.assign(value)
            reason = f"a call changes its variable '{variable.name}'"
            refusal = layer_support.refusal(instruction.name, reason)
    if refusal is not None:
        raise refusal


class Trial:
    """One instruction on random inputs.

    Args:
        instruction: The layer's call.
        moving: Slots that depend on the tokens.
        program: The program that it is part of.
        length: T where the model was made for one length, else None.
    """

    def __init__(
        self, instruction: Instruction, moving: set[int], program: Program, length: int | None
    ) -> None:
        self.instruction, self.length = instruction, length or TOKENS
        self.moving = [slot for slot in instruction.inputs if slot in moving]
        self.program = program
        self.calls = trial_calls.calls_of(self._call, instruction.operation)
        # A mask that the specs do not show matters to attention; `Softmax` would fail with one.
        hidden = program.masked if layer_support.holds_attention(instruction.operation) else ()
        self.masked = {
            slot
            for slot in instruction.inputs
            if slot in hidden or get_keras_mask(program.specs[slot]) is not None
        }
        # A table of positions may be shorter than a trial.
        for size in (length,) if length else _lengths(instruction.operation):
            self.length, self.inputs = size, {}
            self.inputs = self._draw_all(moving)
            with contextlib.suppress(ValueError):
                self._result(self.inputs)
                break

    def _draw_all(self, moving: set[int]) -> dict[int, np.ndarray]:
        random = np.random.default_rng(7)
        slots = dict.fromkeys(self.instruction.inputs)
        return {slot: self._draw(slot, slot in moving, random) for slot in slots}

    def per_position(self) -> bool:
        """True if a token's result depends on no other token; False if also on its index.

        Ids are tried a second time with few different ones: in a draw of all that the model knows
        none comes again soon, and a layer may look for that.

        Raises:
            ValueError: It depends on other tokens.
        """
        found = self._is_per_position()
        ids = {slot: self.inputs[slot] for slot in self.moving}
        ids = {slot: x for slot, x in ids.items() if x.dtype.kind == "i"}
        if not ids:
            return found
        random = np.random.default_rng(11)
        few = {slot: random.choice(np.unique(x)[:3], x.shape) for slot, x in ids.items()}
        self.inputs = self.inputs | few
        return self._is_per_position() and found

    def _is_per_position(self) -> bool:
        whole = self._result(self.inputs)
        if not _near(self._result(self.inputs, self.calls.run_anew), whole):
            raise self._refusal("its result changes from call to call")
        if self.length > 2 and self._acts_separately(whole):
            return True
        for at in (0, 1, self.length // 3, self.length // 2, self.length - 1):
            # Decoding puts the same token at all other indices.
            for change in (_with_others, _repeated):
                changed = {
                    slot: change(x, at % self.length) if slot in self.moving else x
                    for slot, x in self.inputs.items()
                }
                if not _near(_cut(self._result(changed), at), _cut(whole, at)):
                    raise self._refusal(layer_support.MIXING)
        return False

    def _acts_separately(self, whole: list[np.ndarray]) -> bool:
        """Whether parts, and each single token, have their results within the whole sequence."""
        singles = [slice(at, at + 1) for at in range(min(self.length, TOKENS))]
        parts = [x for x in _PARTS if len(range(*x.indices(self.length)))]
        return all(self._agrees(whole, part) for part in (*parts, *singles))

    def with_cache(self) -> list[CacheSpec]:
        """The caches of the attention layers inside.

        Raises:
            ValueError: With them the results token by token are not those of the whole.
        """
        recorder = _Recorder()
        with attention_context(recorder):
            whole = self._result(self.inputs, self.calls.run_anew)
        if recorder.refusals:
            raise recorder.refusals[0]
        run = self.calls.with_caches(tuple(recorder.specs), self.length)
        upto = 0
        for size in _RUNS:
            size = min(size, max(1, self.length // 2), self.length - upto)
            if size == 0:
                break
            part = slice(upto, upto + size)
            result = self._result(self._part(part), functools.partial(run, upto, size))
            if not _near(result, [x[:, part] for x in whole]):
                raise self._refusal(layer_support.MIXING)
            upto += size
        return recorder.specs

    def _agrees(self, whole: list[np.ndarray], part: slice) -> bool:
        try:
            result = self._result(self._part(part))
        except Exception:  # of any kind: the layer cannot take a few tokens
            return False
        return _near(result, [x[:, part] for x in whole])

    def _result(
        self, inputs: dict[int, np.ndarray], run: trial_calls.Call | None = None
    ) -> list[np.ndarray]:
        tensors = {slot: tensor_of(x) for slot, x in inputs.items()}
        try:
            result = (run or self.calls.run)(tensors)
        except Exception as error:
            raise self._refusal(f"it failed on random tokens ({error})") from error
        return [numpy_of(x) for x in result]

    def _call(self, inputs: dict[int, Tensor]) -> list[Tensor]:
        for slot in self.masked:
            set_keras_mask(inputs[slot], ops.ones(inputs[slot].shape[:2], dtype="bool"))
        args, kwargs = self.instruction.fill_in(inputs)
        results = tree.flatten(self.instruction.operation(*args, **kwargs))
        return [_in_float32(x) for x in results]

    def _part(self, part: slice) -> dict[int, np.ndarray]:
        return {slot: x[:, part] if slot in self.moving else x for slot, x in self.inputs.items()}

    def _draw(self, slot: int, moves: bool, random: np.random.Generator) -> np.ndarray:
        spec = self.program.specs[slot]
        time = self.length if moves else OTHERS
        shape = [FREE if size is None else size for size in spec.shape]
        shape[0] = 1
        if len(shape) > 1 and (moves or spec.shape[1] is None):
            shape[1] = time
        dtype = keras.backend.standardize_dtype(spec.dtype)
        if "int" in dtype:
            return self._draw_ids(slot, shape, random).astype(dtype)
        if dtype == "bool":
            return np.ones(shape, "bool")
        return random.normal(size=shape).astype("float32")

    def _draw_ids(self, slot: int, shape: list[int], random: np.random.Generator) -> np.ndarray:
        """Every id that the model knows, or as many as there are tokens."""
        operation = self.instruction.operation
        layers = flatten_layers(operation) if isinstance(operation, keras.layers.Layer) else []
        held = [x.input_dim for x in layers if isinstance(x, keras.layers.Embedding)]
        known = [layer_support.vocabulary(self.program, slot), *held]
        most = min((x for x in known if x is not None), default=2)
        if slot in self.program.inputs and not held and most == 2:
            most = int(self.program.specs[self.program.output].shape[-1] or 2)
        size = int(np.prod(shape))
        ids = np.concatenate([random.permutation(most) for _ in range(-(-size // most))])
        return ids[:size].reshape(shape)

    def _refusal(self, reason: str) -> ValueError:
        kind = type(self.instruction.operation).__name__
        return layer_support.refusal(self.instruction.name, f"{reason} ({kind})")


def _lengths(operation: keras.Operation) -> list[int]:
    """Lengths of a trial, the longest first.

    In a sequence longer than `longest_cached` the keys before are rotated anew, which no cache
    allows: decoding refuses such lengths, and a trial proves nothing there.
    """
    layers = flatten_layers(operation) if isinstance(operation, keras.layers.Layer) else []
    known = [
        layer_support.longest_cached(layer) for layer in layers if isinstance(layer, AttentionLayer)
    ]
    most = min((x for x in known if x is not None), default=TOKENS)
    return [size for size in (TOKENS, PROMPT, 13, 5) if size <= most] or [most]


class _Recorder(AttentionContext):
    """Records the caches that each call of an attention layer would have."""

    def __init__(self) -> None:
        self.specs: list[CacheSpec] = []
        self.refusals: list[ValueError] = []

    def update_cache(
        self,
        layer: AttentionLayer,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        self_attention: bool,
    ) -> tuple[Tensor, Tensor, AttentionMask]:
        spec = CacheSpec(
            layer=layer.name,
            kv_heads=key.shape[2],
            key_size=key.shape[3],
            value_size=None if layer.cached_sizes.value is None else value.shape[3],
            dtype=keras.backend.standardize_dtype(key.dtype),
            window=mask.reach.window,
            cross=not self_attention and key.shape[1] == OTHERS,
            masked=mask.key_mask is not None,
            mask=layer.mask,
            lookahead=mask.lookahead or 0,
            key_axes=key_head_axes(layer),
            longest=layer_support.longest_cached(layer),
        )
        self.specs.append(spec)
        if not spec.cross:
            self._check(layer.name, mask)
        return key, value, mask

    def _check(self, name: str, mask: AttentionMask) -> None:
        given = {
            "attention_mask": mask.mask,
            "segment_ids": mask.query_segments,
            "bidirectional": mask.query_bidirectional,
            "positions": mask.query_positions,
        }
        reasons = [layer_support.unknown(name) for name, x in given.items() if x is not None]
        reasons += [] if mask.lookahead is not None else [layer_support.NOT_CAUSAL]
        self.refusals += [layer_support.refusal(name, reason) for reason in reasons]


def _with_others(x: np.ndarray, at: int) -> np.ndarray:
    """Other values at all tokens but one."""
    other = np.roll(x, 7, axis=1) if x.dtype.kind in "iub" else x * -1.3 + 0.1
    other[:, at] = x[:, at]
    return other


def _repeated(x: np.ndarray, at: int) -> np.ndarray:
    """The values of one token at all of them."""
    return np.repeat(x[:, at : at + 1], x.shape[1], axis=1)


def _cut(arrays: list[np.ndarray], at: int) -> list[np.ndarray]:
    return [x[:, at : at + 1] for x in arrays]


def _in_float32(x: Tensor) -> Tensor:
    is_float = "float" in keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float32") if is_float else x


def _near(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    low = keras.config.floatx() != "float32" or keras.config.dtype_policy().name != "float32"
    tolerance = 3e-2 if low else 1e-3
    return all(
        x.shape == y.shape and np.allclose(x, y, rtol=tolerance, atol=tolerance)
        for x, y in zip(found, expected, strict=True)
    )
