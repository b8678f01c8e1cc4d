"""What tests need of a backend and keras.ops does not give: gradients, compilation."""

import keras
import numpy as np

BACKEND = keras.backend.backend()


def sampled(cases, on_jax):
    """All cases of a sweep; on JAX, which compiles each for seconds, those named or each n-th.

    For sweeps over code that the backends share. Where a kernel is JAX's, `make fuzz` draws more.
    """
    cases = list(cases)
    if BACKEND != "jax":
        return cases
    if isinstance(on_jax, int):
        return cases[::on_jax]
    assert set(on_jax) <= set(cases)
    return list(on_jax)


def tensor(x, dtype=None):
    """A NumPy array as a tensor; floating-point numbers become float32 unless told otherwise."""
    x = np.asarray(x)
    if dtype is None:
        dtype = {"f": "float32", "i": "int32"}.get(x.dtype.kind, str(x.dtype))
    return keras.ops.cast(keras.ops.convert_to_tensor(x), dtype)


def double(x):
    """A NumPy array as a float64 tensor; on JAX it needs the fixture `doubles`."""
    return tensor(x, "float64")


def to_numpy(x):
    """NumPy, with low precision widened to float32 so that NumPy can compute with it."""
    if keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16"):
        x = keras.ops.cast(x, "float32")
    return keras.ops.convert_to_numpy(x)


def value_and_gradients(function, inputs, upstream, as_one=True):
    """What the function gives and the gradients of sum(first of it * upstream), all as NumPy.

    `inputs` is a dictionary of tensors that the function takes by name; it gives a tuple. On
    JAX all of it is compiled as one, which takes seconds: not where many calls have operations
    and shapes in common, of which JAX then compiles each once.
    """

    def loss(values):
        outputs = function(**values)
        return keras.ops.sum(keras.ops.cast(outputs[0], "float32") * upstream), outputs

    inputs = {name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result, outputs = loss(inputs)
        found = tape.gradient(result, inputs)
    elif BACKEND == "jax":
        import jax

        differentiated = jax.value_and_grad(loss, has_aux=True)
        (_, outputs), found = (jax.jit(differentiated) if as_one else differentiated)(inputs)
    else:
        import torch

        inputs = {name: x.detach().clone().requires_grad_(True) for name, x in inputs.items()}
        result, outputs = loss(inputs)
        outputs = [output.detach() for output in outputs]
        found = dict(zip(inputs, torch.autograd.grad(result, list(inputs.values())), strict=True))
    outputs = tuple(to_numpy(output) for output in outputs)
    return outputs, {name: to_numpy(gradient) for name, gradient in found.items()}


def value_and_gradients_of_layer(layer, inputs, upstream, **options):
    """Gradients of sum(output * upstream) by every input and weight, as NumPy, by name.

    Weights are named by the last parts of their paths; on JAX all of it is compiled as one.
    """
    names = ["/".join(v.path.split("/")[-2:]) for v in layer.trainable_variables]
    names = [name.split("/")[-1] if name.endswith(("/sink", "/table")) else name for name in names]
    inputs = {name: tensor(x) for name, x in inputs.items()}

    def loss(given):
        return keras.ops.sum(layer(**given, **options) * upstream)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = loss(inputs)
        found = tape.gradient(result, [*inputs.values(), *variables])
    elif BACKEND == "jax":
        import jax

        def stateless(values, weights):
            state = [v.value for v in layer.non_trainable_variables]
            output, _ = layer.stateless_call(weights, state, **values, **options)
            return keras.ops.sum(output * upstream)

        weights = [v.value for v in layer.trainable_variables]
        by_input, by_weight = jax.jit(jax.grad(stateless, argnums=(0, 1)))(inputs, weights)
        found = [*(by_input[name] for name in inputs), *by_weight]
    else:
        import torch

        inputs = {name: x.detach().requires_grad_(True) for name, x in inputs.items()}
        parameters = [v.value for v in layer.trainable_variables]
        found = torch.autograd.grad(loss(inputs), [*inputs.values(), *parameters])
    return dict(zip([*inputs, *names], map(to_numpy, found), strict=True))


def compiled(function, jit_compile=False):
    """The function as the backend's `fit()` would run it: a graph, a jit, or as it is on torch."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # As Keras's trainer does, without AutoGraph, which takes longer than the rest.
        return tf.function(function, jit_compile=jit_compile, autograph=False)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function


# For `model.compile(jit_compile=)`: XLA takes seconds for each step of TensorFlow's `fit()`, so
# only tests of it ask for it.
JIT = False if BACKEND == "tensorflow" else "auto"


def predicted(model, *inputs):
    """What the model gives, as NumPy: `predict()` would compile a function for each model."""
    given = [keras.ops.convert_to_tensor(x) for x in inputs]
    return to_numpy(model(given if len(given) > 1 else given[0], training=False))


def run(function, *inputs):
    """Calls the function: on JAX compiled as a whole, which is faster than op by op."""
    inputs = [keras.ops.convert_to_tensor(x) for x in inputs]
    return compiled(function)(*inputs) if BACKEND == "jax" else function(*inputs)
