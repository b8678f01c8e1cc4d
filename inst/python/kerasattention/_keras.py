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
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_ATTRIBUTES = ("keras.src.backend.common.tensor_attributes",)
get_tensor_attribute = _find("get_tensor_attr", *_ATTRIBUTES)
set_tensor_attribute = _find("set_tensor_attr", *_ATTRIBUTES)
# Whether Keras calls a layer only to learn the shape of its output.
in_symbolic_scope = _find("in_symbolic_scope", "keras.src.backend.common.symbolic_scope")

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
_set_global_attribute = _find(
    "set_global_attribute", "keras.src.backend.common.global_state", "keras.src.backend"
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


def variable_layout(variable: keras.Variable) -> Any:
    """The layout on several devices that a variable was given; None if there is none."""
    return _attribute(variable, "_layout")


def set_variable_layout(variable: keras.Variable, layout: Any) -> None:
    """Gives a variable another sharding of JAX, and its value with it."""
    import jax  # Keras's own function leaves values that are on the same devices as they are

    variable._layout = layout
    if stored_value(variable) is not None:
        with jax.ensure_compile_time_eval():  # a model may be traced while it is built
            variable._value = jax.device_put(stored_value(variable), layout)


@contextlib.contextmanager
def abstract_variables() -> Iterator[None]:
    """Variables that are made within have shapes and dtypes, but never values."""
    name = "uninitialized_variables"
    # Keras would give those values at the end of the next scope.
    waiting = list(_get_global_attribute(name) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        _set_global_attribute(name, waiting)


def has_sublayers(layer: keras.layers.Layer) -> bool:
    return bool(list(_attribute(layer, "_layers")))


def graph_of(model: keras.Sequential) -> Any:
    """The Functional model that a built Sequential model runs; None before it is built."""
    return _attribute(model, "_functional")


def producer_of(x: Any) -> Any:
    """The operation that a symbolic tensor is a result of, and its (args, kwargs) in that call.

    None for the input of a model.
    """
    history = _attribute(x, "_keras_history")
    node = _attribute(history.operation, "_inbound_nodes")[history.node_index]
    if node.is_input:
        return None
    return history.operation, (node.arguments.args, node.arguments.kwargs)


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
    module = _operations_of_torch()
    for name, product in (("matmul", _int8_matmul), ("einsum", _int8_einsum)):
        original = _find(name, module.__name__)
        if not hasattr(original, "__wrapped__"):
            setattr(module, name, _with_int8(original, product, unless))


def _operations_of_torch() -> Any:
    """The module of torch's products, which Keras 3.16 moved."""
    try:
        return importlib.import_module("keras.src.backend.torch.ops.numpy")
    except ModuleNotFoundError:
        return importlib.import_module("keras.src.backend.torch.numpy")


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


# Trainers ------------------------------------------------------------------------------------


def _trainer_of(backend: str, name: str) -> Any:
    """The class of a backend's trainer. In Keras 3.16 all have one name."""
    module = importlib.import_module(f"keras.src.backend.{backend}.trainer")
    return getattr(module, name, None) or _find("Trainer", module.__name__)


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
    trainer = _trainer_of("jax", "JAXTrainer")
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


# Several devices on JAX ----------------------------------------------------------------------


def guard_jax_trainer(
    check_call: Callable[[Any, Mapping[str, Any]], None], check_data: Callable[[Any], None]
) -> None:
    """Checks calls and batches of JAX's trainer, of all models, before it changes anything.

    Args:
        check_call: Gets the model and the arguments of `fit()` and the other methods by name.
        check_data: Gets a batch before it is put on the devices.
    """
    module = importlib.import_module("keras.src.backend.jax.trainer")
    trainer = _trainer_of("jax", "JAXTrainer")
    methods = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
    for name in methods:
        setattr(trainer, name, _checked(getattr(trainer, name), check_call))
    distribute = _find("_distribute_data", module.__name__)

    @functools.wraps(distribute)
    def distribute_checked(data: Any, *args: Any, **kwargs: Any) -> Any:
        check_data(data)
        return distribute(data, *args, **kwargs)

    setattr(module, distribute.__name__, distribute_checked)


def _checked(
    method: Callable[..., Any], check: Callable[[Any, Mapping[str, Any]], None]
) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checked(model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(model, *args, **kwargs)
        except TypeError:
            return method(model, *args, **kwargs)  # which says what is wrong
        given.apply_defaults()
        check(model, given.arguments)
        return method(model, *args, **kwargs)

    return checked


# Several processes on JAX --------------------------------------------------------------------


def share_seed() -> None:
    """Gives all processes one global seed, unless one was set."""
    _find("initialize_rng", "keras.src.backend.jax.distribution_lib")()


def change_jax_predictions(rows_of: Callable[[Any, int], Any]) -> None:
    """Applies a function to each output of `predict()` and the rows of the batch, once."""
    trainer = _trainer_of("jax", "JAXTrainer")
    make = _attribute(trainer, "make_predict_function")

    @functools.wraps(make)
    def make_with_rows(model: Any, force: bool = False) -> None:
        before = model.predict_function
        make(model, force)
        if model.predict_function is not before:
            model.predict_function = _with_rows(model.predict_function, rows_of)

    trainer.make_predict_function = make_with_rows


def _with_rows(step: Callable[..., Any], rows_of: Callable[[Any, int], Any]) -> Callable[..., Any]:
    def step_with_rows(state: Any, iterator: Any) -> Any:
        counted = _CountingRows(iterator)
        outputs, state = step(state, counted)
        if counted.batches > 1:
            raise RuntimeError(
                "`predict()` over several processes needs `steps_per_execution=1`. "
                f"Received: {counted.batches}"
            )
        return keras.tree.map_structure(lambda x: rows_of(x, counted.rows), outputs), state

    return step_with_rows


class _CountingRows:
    """An iterator that counts the rows of this process in what it gave."""

    def __init__(self, iterator: Any) -> None:
        self._iterator, self.rows, self.batches = iterator, 0, 0

    def __iter__(self) -> "_CountingRows":
        return self

    def __next__(self) -> Any:
        data = next(self._iterator)
        self.batches += 1
        first = keras.tree.flatten(data)[0]
        if not hasattr(first, "addressable_shards"):  # of NumPy, without a distribution
            self.rows += first.shape[0]
            return data
        # Parts of a batch that several devices have, as those of a model over several, count once.
        starts = {shard.index[0].start or 0: shard.data for shard in first.addressable_shards}
        self.rows += sum(part.shape[0] for part in starts.values())
        return data


def explain_errors_of_processes(elsewhere: str, lost: str) -> None:
    """Replaces errors of JAX, once.

    Args:
        elsewhere: The text where weights are read that are in other processes.
        lost: The text where another process has ended during training, before JAX's.
    """
    trainer = _trainer_of("jax", "JAXTrainer")
    readers = [(keras.layers.Layer, "get_weights")]
    readers += [(keras.Model, name) for name in ("save", "save_weights", "export")]
    for owner, name in readers:
        method = _explained(getattr(owner, name), ["non-addressable"], lambda _: elsewhere)
        setattr(owner, name, method)
    for name in ("fit", "evaluate", "predict"):
        signs = ["Gloo", "heartbeat", "Connection reset", "NCCL"]
        method = _explained(getattr(trainer, name), signs, lambda error: f"{lost} {error}")
        setattr(trainer, name, method)


def _explained(
    method: Callable[..., Any], signs: Sequence[str], text: Callable[[Exception], str]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if not any(sign in str(error) for sign in signs):
                raise
            raise RuntimeError(text(error)) from error

    return explained


@contextlib.contextmanager
def with_values(variables: Sequence[keras.Variable], values: Sequence[Any]) -> Iterator[None]:
    """Other values for variables, such as arrays of NumPy, to be read within."""
    before = [stored_value(variable) for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable._value = value
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable._value = value


# Several processes on TensorFlow -------------------------------------------------------------


def guard_tensorflow_fit(check: Callable[[Any], None]) -> None:
    """Checks a model before TensorFlow's `fit()`, once."""
    trainer = _trainer_of("tensorflow", "TensorFlowTrainer")
    fit = trainer.fit

    @functools.wraps(fit)
    def checked(model: Any, *args: Any, **kwargs: Any) -> Any:
        check(model)
        return fit(model, *args, **kwargs)

    trainer.fit = checked


# Parameters on torch -------------------------------------------------------------------------


def outermost_layer() -> Any:
    """The layer or model whose call the running one is part of; None outside of calls."""
    context = _get_global_attribute("current_call_ctx")
    return getattr(context, "entry_layer", None)


def registered_parameter(layer: Any, variable: keras.Variable) -> Any:
    """What torch knows as the parameter of a layer's variable; None where it knows none."""
    parameters = getattr(layer, "_torch_params", None)
    if parameters is None or variable.path not in parameters:
        return None
    return parameters[variable.path]
