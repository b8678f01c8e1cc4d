"""`generate()`: continues token ids with a key/value cache."""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.decoder import CHUNK, IncrementalDecoder, check_positive
from kerasattention.decoding.plan import as_logits
from kerasattention.decoding.sampling import Sampler, choose_tokens

Tokens = Any
Callback = Callable[[np.ndarray], Any]


def generate(
    model: keras.Model,
    tokens: Tokens,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | Sequence[int] | None = None,
    seed: int | None = None,
    *,
    num_return_sequences: int = 1,
    inputs: Any = None,
    token_input: str | int | None = None,
    callback: Callback | None = None,
    progress: bool | Callable[[int, int], Any] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Continues prompts with the model's likeliest tokens, or with tokens drawn.

    Args:
        model: A Functional or Sequential model of causal attention whose other
            layers act per position: tokens (B, T) to logits (B, T, V). A last layer
            that ends in a softmax is understood.
        tokens: Prompts: a vector, a matrix (B, T), or B sequences of different
            lengths, padded on the left and the padding masked.
        max_new_tokens: How many tokens to add at most.
        temperature: 0 takes the likeliest token; else the logits are divided by it
            and a token is drawn.
        top_k: None, or how many of the likeliest tokens to draw from.
        top_p: None, or the probability that the tokens drawn from have together
            (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
        stop_token: None, or the token (or tokens) after which a row ends. Rows that
            ended are filled up with the token that ended them.
        seed: Integer; the same seed gives the same tokens on every backend, as far
            as their logits agree.
        num_return_sequences: How many continuations of each prompt.
        inputs: Other inputs of the model (an encoder's), by name or in order.
        token_input: Which input the tokens are; the last by default.
        callback: Called with the new tokens (B) each time one has come; the
            generation ends when it gives False.
        progress: Whether to show a progress bar, or a function called with the
            number of tokens done and in all. None shows one when the run is long.

    Returns:
        Prompts with their continuations as int32: a vector for a vector, a matrix
        for a matrix, a list of vectors for sequences of different lengths. With
        several sequences per prompt those of a prompt follow each other.

    Raises:
        ValueError: A model that cannot be decoded, with the layer's name and the
            reason; arguments that do not fit.
    """
    check_positive("max_new_tokens", max_new_tokens)
    check_positive("num_return_sequences", num_return_sequences)
    sampler = Sampler(temperature, top_k, top_p, seed)
    stop = _as_stop(stop_token)
    prompts = _Prompts.of(tokens, num_return_sequences)
    decoder = decoder_for(model, prompts.rows, prompts.length + max_new_tokens, token_input)
    reports = _Reports(callback, progress, max_new_tokens)
    try:
        made = continue_prompts(
            decoder,
            prompts.tokens,
            max_new_tokens,
            sampler,
            stop,
            _repeat(inputs, num_return_sequences),
            reports,
        )
    finally:
        decoder.reset()
        reports.close()
    return prompts.joined(made, stop)


def continue_prompts(
    decoder: IncrementalDecoder,
    prompts: Tokens,
    max_new_tokens: int,
    sampler: Sampler,
    stop: np.ndarray,
    inputs: Any,
    reports: "_Reports",
) -> np.ndarray:
    """The new tokens (B, at most `max_new_tokens`)."""
    kind, numbers = sampler.kind, sampler.numbers()
    decoder.reset()
    logits = decoder.prefill(prompts, inputs)
    logits = as_logits(decoder.plan, logits)
    last = choose_tokens(logits, kind, numbers, decoder.length, decoder.padding)
    stop_tokens = ops.convert_to_tensor(stop, dtype="int32")
    finished = ops.any(ops.equal(last[:, None], stop_tokens[None]), axis=1)
    parts = [ops.convert_to_numpy(last)[:, None]]
    done, more = 1, reports.tell(parts[0], 1)
    while more and done < max_new_tokens and not (stop.size and _all(finished)):
        steps = min(reports.stride, max_new_tokens - done)
        made, finished, count = decoder.loop(kind, numbers, last, steps, finished, stop_tokens)
        part = ops.convert_to_numpy(made)[:, :count]
        parts.append(part)
        last = ops.convert_to_tensor(part[:, -1])
        done += count
        more = reports.tell(part, done)
    return np.concatenate(parts, axis=1)


# Decoders are kept with their model: what is compiled serves the next call too.
_decoders: "weakref.WeakKeyDictionary[keras.Model, dict[Any, IncrementalDecoder]]" = (
    weakref.WeakKeyDictionary()
)
_KEPT = 2


def decoder_for(
    model: keras.Model, rows: int, length: int, token_input: str | int | None
) -> IncrementalDecoder:
    """A decoder with room for `length` tokens, made for an earlier call if there was one."""
    kept = _decoders.setdefault(model, {})
    for key, decoder in reversed(kept.items()):
        wide = decoder.max_length <= 2 * max(length, 64)
        if key == (rows, token_input) and decoder.max_length >= length and wide:
            return decoder
    return make_decoder(model, rows, length, token_input)


def make_decoder(
    model: keras.Model, rows: int, length: int, token_input: str | int | None
) -> IncrementalDecoder:
    kept = _decoders.setdefault(model, {})
    last = kept.get((rows, token_input))
    # A conversation grows turn by turn: room for twice as much compiles less often.
    grows = last is not None and last.max_length < length
    wanted = max(length, 2 * last.max_length) if grows else length
    try:
        decoder = IncrementalDecoder(model, rows, -(-wanted // 64) * 64, token_input=token_input)
    except ValueError:
        decoder = IncrementalDecoder(model, rows, length, token_input=token_input)
    kept.pop((rows, token_input), None)
    kept[(rows, token_input)] = decoder
    while len(kept) > _KEPT:
        kept.pop(next(iter(kept)))
    return decoder


@dataclasses.dataclass(frozen=True)
class _Prompts:
    """Prompts of whatever form, and how to give the results back in it."""

    tokens: Any
    rows: int
    length: int
    form: str
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Tokens, copies: int) -> "_Prompts":
        if isinstance(tokens, (list, tuple)) and tokens and np.ndim(tokens[0]) > 0:
            rows = [_checked(np.asarray(row).reshape(-1)) for row in tokens]
            form = "list"
        else:
            tokens = ops.convert_to_numpy(tokens) if ops.is_tensor(tokens) else np.asarray(tokens)
            form = "vector" if tokens.ndim == 1 else "matrix"
            if tokens.ndim not in (1, 2):
                raise ValueError(
                    "`tokens` must be a vector, a matrix (B, T) or a list of vectors. "
                    f"Received: shape {tokens.shape}"
                )
            rows = list(np.atleast_2d(_checked(tokens)))
        lengths = tuple(row.size for row in rows for _ in range(copies))
        if not lengths or min(lengths) == 0:
            raise ValueError("Each prompt must have at least one token.")
        rows = [row for row in rows for _ in range(copies)]
        same = len(set(lengths)) == 1
        form = "matrix" if form == "vector" and copies > 1 else form
        return cls(np.stack(rows) if same else rows, len(rows), max(lengths), form, lengths)

    def joined(self, made: np.ndarray, stop: np.ndarray) -> np.ndarray | list[np.ndarray]:
        rows = [np.concatenate([row, new]) for row, new in zip(self.tokens, made, strict=True)]
        rows = [row.astype("int32") for row in rows]
        if self.form == "vector":
            return rows[0]
        if self.form == "matrix":
            return np.stack(rows)
        # Of different lengths anyway: each ends with its stop token.
        return [
            row[: size + _used(new, stop)]
            for row, size, new in zip(rows, self.lengths, made, strict=True)
        ]


def _used(new: np.ndarray, stop: np.ndarray) -> int:
    ends = np.flatnonzero(np.isin(new, stop))
    return int(ends[0]) + 1 if ends.size else new.size


class _Reports:
    """Tells a callback each token, and how far a long run is."""

    def __init__(self, callback: Callback | None, progress: Any, total: int) -> None:
        self.callback, self.total = callback, total
        self.progress = progress if callable(progress) else None
        self.bar = None
        if progress is True or (progress is None and total >= 512 and callback is None):
            self.bar = keras.utils.Progbar(total, unit_name="token")
        if callback is not None:
            self.stride = 1
        else:
            self.stride = CHUNK if self.bar is None and self.progress is None else 16

    def tell(self, new: np.ndarray, done: int) -> bool:
        """Whether to go on."""
        if self.bar is not None:
            self.bar.update(done, finalize=done == self.total)
        if self.progress is not None:
            self.progress(done, self.total)
        if self.callback is None:
            return True
        return all(self.callback(new[:, index]) is not False for index in range(new.shape[1]))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.update(self.bar._seen_so_far or 0, finalize=True)


def _as_stop(stop_token: int | Sequence[int] | None) -> np.ndarray:
    stop = np.asarray([] if stop_token is None else stop_token).reshape(-1)
    if stop.size and (stop.dtype.kind not in "iu" or (stop < 0).any()):
        raise ValueError(
            f"`stop_token` must be `None` or token ids, 0 or greater. Received: {stop_token!r}"
        )
    return stop.astype("int32")


def _checked(tokens: np.ndarray) -> np.ndarray:
    whole = tokens.dtype.kind in "iu" or (
        tokens.dtype.kind == "f" and bool(np.all(tokens == np.floor(tokens)))
    )
    if not whole or (tokens < 0).any():
        raise ValueError("`tokens` must be token ids: whole numbers, 0 or greater.")
    return tokens.astype("int32")


def _repeat(inputs: Any, copies: int) -> Any:
    """The other inputs once for each continuation."""
    if inputs is None or copies == 1:
        return inputs
    if isinstance(inputs, dict):
        return {name: np.repeat(np.asarray(x), copies, axis=0) for name, x in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return [np.repeat(np.asarray(x), copies, axis=0) for x in inputs]
    return np.repeat(np.asarray(inputs), copies, axis=0)


def _all(finished: Tensor) -> bool:
    return bool(ops.convert_to_numpy(finished).all())
