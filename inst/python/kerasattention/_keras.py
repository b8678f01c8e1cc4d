"""The private names of Keras that the package uses. No other module uses one.

Checked with Keras 3.15.1 and the nightly build of 3.16 (2026-10-27).

A name that a later Keras moved is searched for in the modules that it may be in now. One
that is gone is an error that says so, instead of an `AttributeError` from a call.

It has more than 300 lines because a private name must have one place to be looked for.
"""

import contextlib
import contextvars
import functools
import importlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras


def _missing(name: str) -> str:
    return (
        f"kerasattention needs `{name}` of Keras, which Keras {keras.__version__} does not have. "
        "Install a version of Keras that this kerasattention was checked with, such as 3.15.1, "
        "or a newer kerasattention."
    )


def _find(name: str, *modules: str) -> Any:
    """A name from the first module that has it."""
    for module in modules:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue
        if found is not None:
            return found
    raise ImportError(_missing(name))


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise AttributeError(_missing(f"{type(owner).__name__}.{name}")) from error


# Until 3.15 `keras.src.backend` had them as well.
_MASKING = ("keras.src.backend.common.masking", "keras.src.backend.common", "keras.src.backend")
get_keras_mask = _find("get_keras_mask", *_MASKING)
set_keras_mask = _find("set_keras_mask", *_MASKING)

Functional: type[keras.Model] = _find("Functional", "keras.src.models.functional", "keras.models")

Node: type = _find("Node", "keras.src.ops.node")

# Attributes of layers that are changed by a call, by saving, or by use of the layer in another
# model.
BOOKKEEPING = {
    *("_called", "_losses", "_loss_ids", "_losses_override", "training", "_torch_params"),
    *("_inbound_nodes", "_outbound_nodes", "_tracker", "_auto_config", "_build_shapes_dict"),
    *("_metrics", "build", "quantize", "_non_persistent_buffers_set", "is_gptq_calibrated"),
    "is_awq_calibrated",
}
# Attributes of training: a model may be compiled and fitted, and computes the same afterwards.
OF_TRAINERS = {
    *("_compile_config", "_compile_loss", "_compile_metrics", "_compiled_trainable_state"),
    *("_eval_epoch_iterator", "_epoch_iterator", "_jax_state", "_jax_state_synced", "_jit_compile"),
    *("_loss_tracker", "_run_eagerly", "auto_scale_loss", "compiled", "history", "loss"),
    *("optimizer", "predict_function", "steps_per_execution", "stop_evaluating", "stop_predicting"),
    *("stop_training", "test_function", "train_function", "_distribute_strategy"),
    *("_distribute_reduction_method", "_supports_reduce_retracing", "_initial_epoch"),
}

# torch's modules have their layers in a dictionary of this name.
LAYERS_ON_TORCH = "_modules"

# What is serialized or copied within it and refers to one object twice, does so afterwards.
ObjectSharingScope = _find("ObjectSharingScope", "keras.src.saving.serialization_lib")
_get_global_attribute = _find(
    "get_global_attribute", "keras.src.backend.common.global_state", "keras.src.backend"
)


def shares_objects() -> bool:
    """Whether an `ObjectSharingScope` is open, as it is while a model is saved."""
    return _get_global_attribute("shared_objects/id_to_config_map") is not None


def finds_shared_objects() -> bool:
    """Whether an `ObjectSharingScope` is open, as it is while a model is loaded."""
    return _get_global_attribute("shared_objects/id_to_obj_map") is not None


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[Any]:
    """A layer and all layers in it, however deep; each once."""
    return _attribute(layer, "_flatten_layers")(include_self=include_self)


def stored_value(variable: keras.Variable) -> Any:
    """What a variable holds, not as seen from within a `StatelessScope`."""
    return _attribute(variable, "_value")


def has_sublayers(layer: keras.layers.Layer) -> bool:
    return bool(list(_attribute(layer, "_layers")))


def graph_of(model: keras.Sequential) -> Any:
    """The Functional model that a built Sequential model runs; None before it is built."""
    return _attribute(model, "_functional")


def nodes_in_order(graph: Any) -> Iterator[Any]:
    """The calls of a Functional model's layers in the order in which it runs them."""
    by_depth = _attribute(graph, "_nodes_by_depth")
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.operation is not None and not node.is_input:
                yield node


def is_keras_operation(operation: Any) -> bool:
    """Whether it is an operation of `keras.ops`, whose classes are not public."""
    return type(operation).__module__.startswith("keras.src.ops")


def is_recomputed(layer: keras.layers.Layer) -> bool:
    """Whether the layer was made in a `keras.RematScope`."""
    return bool(_attribute(layer, "_remat_mode"))


def kernel_variable(dense: keras.layers.EinsumDense) -> Any:
    """The variable that holds a projection's kernel, without LoRA; None where GPTQ replaced it."""
    return getattr(dense, "_kernel", None)


def tensor_layouts(distribution: Any) -> dict[str, Any]:
    """The layouts by pattern of a `ModelParallel`, of variables and outputs; else none."""
    return dict(getattr(distribution, "_layout_map", None) or {})


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """The `output_shape` that a `Lambda` layer was made with."""
    return _attribute(layer, "_output_shape")


# Overrides of products ----------------------------------------------------------------------

Override = Callable[..., Any]
_overrides: contextvars.ContextVar[Mapping[int, Override]] = contextvars.ContextVar(
    "kerasattention_overrides", default=MappingProxyType({})
)
_active, _lock = 0, threading.Lock()  # the number of contexts that override calls, in any thread


@contextlib.contextmanager
def override_calls(overrides: Mapping[int, Override]) -> Iterator[None]:
    """Replaces the calls of some layers of Keras, wherever in a model they are.

    Args:
        overrides: By the identity of a `Dense`, `EinsumDense` or `ReversibleEmbedding`: a
            function of the layer's own call and of its arguments.
    """
    global _active
    _make_overridable()
    with _lock:
        _active += 1
    token = _overrides.set(overrides)
    try:
        yield
    finally:
        _overrides.reset(token)
        with _lock:
            _active -= 1


@functools.cache
def _make_overridable() -> None:
    """Lets the calls of the classes ask for an override. Until then Keras is unchanged."""
    kinds = ("Dense", "EinsumDense", "ReversibleEmbedding")
    for kind in (getattr(keras.layers, name, None) for name in kinds):
        for name in ("call", "quantized_call"):  # of which Keras takes one
            if kind is not None:
                setattr(kind, name, _overridable(getattr(kind, name)))


def _overridable(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def overridable(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The count first: `torch.compile()` cannot trace a `ContextVar`.
        override = _overrides.get().get(id(self)) if _active else None
        if override is None:
            return call(self, *args, **kwargs)
        return override(functools.partial(call, self), *args, **kwargs)

    return overridable


# Products of int8 numbers --------------------------------------------------------------------

# A sum of this many products of int8 numbers is at most 2^24; float32 holds it exactly.
_EXACT_DEPTH = 2**24 // (128 * 128)


def override_int8_products(unless: Callable[[], bool]) -> None:
    """Has Keras multiply int8 numbers in float32 on torch's CPU, with the same whole numbers.

    Keras uses an int8 product (`can_use_int_matmul`) on CUDA only, and else casts to int32, for
    which torch has no BLAS. Interleaved on one core with AVX2, `predict()` of two blocks of
    D = 256, T = 128 takes 0.52 of the time. (`torch._int_mm` is slower still on such a
    processor: it needs VNNI.)

    Args:
        unless: Says that a product is left to Keras, as within decoders, which replace it.
    """
    if keras.backend.backend() != "torch":
        return
    module = importlib.import_module("keras.src.backend.torch.numpy")
    for name, product in (("matmul", _int8_matmul), ("einsum", _int8_einsum)):
        original = _find(name, module.__name__)
        if not hasattr(original, "__wrapped__"):
            setattr(module, name, _with_int8(original, product, unless))


def _with_int8(
    original: Callable[..., Any], product: Callable[..., Any], unless: Callable[[], bool]
) -> Callable[..., Any]:
    import torch

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in args if getattr(x, "dtype", None) is torch.int8]
        is_ours = len(tensors) == 2 and all(x.device.type == "cpu" and x.numel() for x in tensors)
        if is_ours and not unless():
            result = product(*args, **kwargs)
            if result is not None:
                return result
        return original(*args, **kwargs)

    return function


def _int8_matmul(left: Any, right: Any) -> Any | None:
    """(..., t, d) @ (d, f) in int32; None for other shapes."""
    if left.ndim < 2 or right.ndim != 2:
        return None
    return _exact_product(left, right, axes=1)


def _int8_einsum(subscripts: str, left: Any, right: Any) -> Any | None:
    """As "btd,dnh->btnh" and "btnh,nhd->btd" in int32; None for other equations."""
    inputs, _, output = subscripts.replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    axes = sum(letter in second for letter in first)
    summed = second[:axes]
    if axes == 0 or not first.endswith(summed) or output != first[:-axes] + second[axes:]:
        return None
    return _exact_product(left, right, axes)


def _exact_product(left: Any, right: Any, axes: int) -> Any:
    """The int32 sums over the last axes of one tensor and the first of the other."""
    import torch

    depth = math.prod(right.shape[:axes])
    rows, columns = left.reshape(-1, depth), right.reshape(depth, -1)  # (t, d), (d, f)

    def block_product(start: int) -> Any:
        block = slice(start, start + _EXACT_DEPTH)
        return (rows[:, block].float() @ columns[block].float()).to(torch.int32)  # (t, f)

    total = functools.reduce(torch.add, map(block_product, range(0, depth, _EXACT_DEPTH)))
    return total.reshape(*left.shape[: left.ndim - axes], *right.shape[axes:])


# Interrupts on JAX ---------------------------------------------------------------------------


def change_jax_trainer(
    make_function: Callable[[Any], Any], ending_in_sync: Callable[[Any], Any]
) -> None:
    """Replaces methods of JAX's trainer, of all models, once.

    Args:
        make_function: From the method that makes the step of an epoch to the one in its place.
        ending_in_sync: The same of the methods that leave variables without values where an
            exception ends them.
    """
    trainer = _find("JAXTrainer", "keras.src.backend.jax.trainer")
    if hasattr(_attribute(trainer, "_make_function"), "__wrapped__"):
        return
    trainer._make_function = make_function(trainer._make_function)
    for name in ("evaluate", "predict"):
        setattr(trainer, name, ending_in_sync(getattr(trainer, name)))


def attach_jax_state(model: Any, state: tuple[list[Any], ...]) -> None:
    """Gives variables the values of a step's state, where the step did not consume them."""
    groups = [model.trainable_variables, model.non_trainable_variables]
    groups += [model.optimizer.variables] if len(state) == 4 else []
    groups += [model.metrics_variables] if len(state) > 2 else []
    for variables, values in zip(groups, state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            if not value.is_deleted():
                variable.assign(value)
    model._jax_state_synced = True


def store_jax_state(model: Any, state: tuple[list[Any], ...]) -> None:
    """Notes a step's state, as the trainer does after it."""
    names = ["trainable_variables", "non_trainable_variables"]
    names += ["optimizer_variables"] if len(state) == 4 else []
    names += ["metrics_variables"] if len(state) > 2 else []
    model._jax_state = dict(zip(names, state, strict=True))
