"""`finite.poison()` on JAX, in reverse and forward mode and under `vmap()`.

The gradient of a poisoned row is infinite unless it is zero, and so is not a linear function of
the upstream gradient: JAX's rules for derivatives cannot express that, a primitive can. A
factor of infinity in its place has a derivative of infinity where the gradient is zero too,
which made second derivatives NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@jax.custom_jvp
def poison(x: jax.Array, rows: jax.Array) -> jax.Array:
    """NaN where `rows`, of the same shape, is true."""
    return jnp.where(rows, jnp.nan, x)


@poison.defjvp
def _(primals: Any, tangents: Any) -> Any:
    x, rows = primals
    return poison(x, rows), _infinite(tangents[0], rows)


def _infinite(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Infinity where `rows` is true and x is not zero."""
    return _primitive.bind(x, rows)


def _computed(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.where(rows & (x != 0), jnp.inf, x)


def _jvp(primals: Any, tangents: Any) -> Any:
    (x, rows), tangent = primals, tangents[0]
    if type(tangent) is not ad.Zero:
        # Zeros stay zero, and their tangent passes unchanged.
        tangent = _infinite(tangent, rows & (x != 0))
    return _infinite(x, rows), tangent


def _transpose(cotangent: Any, x: Any, rows: jax.Array) -> Any:
    return (cotangent if type(cotangent) is ad.Zero else _infinite(cotangent, rows)), None


_primitive = Primitive("poisoned_gradient")
_primitive.def_impl(jax.jit(_computed))
_primitive.def_abstract_eval(lambda x, rows: x)
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.defbroadcasting(_primitive)
mlir.register_lowering(_primitive, mlir.lower_fun(_computed, multiple_results=False))
