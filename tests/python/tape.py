"""Differentiation in float64 NumPy: operations that record how to pass gradients back.

Whole arrays at a time, for the fuzzers; it shares no code with the package. `rounding` gives each
result a random relative error, which samples the error of the formula itself in a precision
(Monte Carlo arithmetic, Parker 1997); with it the arithmetic may be that of float32.
Shape letters as in `reference`.
"""

import ml_dtypes
import numpy as np


class Node:
    """An array and, once `Tape.backward()` has run, the gradient by it.

    `output` is, of attention weights, the node of the output that they were combined to.
    """

    def __init__(self, value):
        self.value = value
        self.output = None
        self.gradient = np.zeros_like(value)


class Tape:
    """Operations in the order in which they were done.

    `narrow_bias_sums` says that the gradients of biases are added up in bfloat16, `tanh_roundings`
    how many roundings the error of a hyperbolic tangent is.
    """

    def __init__(
        self,
        rounding=0.0,
        smallest=0.0,
        rng=None,
        dtype=np.float64,
        narrow_bias_sums=False,
        tanh_roundings=1.0,
    ):
        self.rounding, self.smallest, self.rng, self.dtype = rounding, smallest, rng, dtype
        self.narrow_bias_sums, self.tanh_roundings = narrow_bias_sums, tanh_roundings
        self.steps = []

    def leaf(self, x):
        return Node(np.asarray(x, dtype=self.dtype))

    def rounded(self, x, rounding=None):
        """The array with an error of the precision in each element."""
        size = self.rounding if rounding is None else rounding
        if not size:
            return x
        if np.iscomplexobj(x):  # a number and its derivative, each computed by itself
            x = self.factors(x, size) * x.real + 1j * self.factors(x, size) * x.imag
        else:
            x = self.factors(x, size) * x
        x = np.asarray(x, dtype=self.dtype)
        # The smallest numbers of a precision are the absolute error of others.
        return x if self.smallest < 1e-30 else x + self.smallest * self.rng.choice((-1, 1))

    def factors(self, x, size):
        relative = self.rng.random(np.shape(x), np.float32)
        return 1.0 + size * (2.0 * relative.astype(self.dtype) - 1.0).real

    def done(self, value, *parents):
        """A node of this value; `parents` are pairs of a node and its share of the gradient."""
        node = Node(np.asarray(self.rounded(value), dtype=self.dtype))
        self.steps.append((node, parents))
        return node

    def backward(self, *outputs):
        """Takes pairs of a node and the gradient by it, and fills in all others."""
        for node, upstream in outputs:
            node.gradient = node.gradient + upstream
        for node, parents in reversed(self.steps):
            for parent, share in parents:
                passed = sum_to(np.asarray(share(node.gradient), self.dtype), parent.value.shape)
                parent.gradient = parent.gradient + self.rounded(passed)

    def add(self, a, b):
        return self.done(a.value + b.value, (a, lambda g: g), (b, lambda g: g))

    def add_bias(self, x, bias):
        """The bias of a projection."""

        def share(g):
            # Of several heads it is another operation, which adds in float32.
            if not self.narrow_bias_sums or bias.value.size > max(bias.value.shape):
                return g
            total = np.zeros(bias.value.shape, ml_dtypes.bfloat16)
            for row in g.reshape(-1, *bias.value.shape).astype(total.dtype):
                total = total + row
            return total.astype(self.dtype)

        return self.done(x.value + bias.value, (x, lambda g: g), (bias, share))

    def multiply(self, a, b):
        """Where one is broadcast, its gradient is a sum of products, each of them rounded."""
        product = a.value * b.value

        def share(of, other):
            def times(g):
                found = g * other.value
                return found if of.value.shape == product.shape else self.rounded(found)

            return (of, times)

        return self.done(product, share(a, b), share(b, a))

    def shifted(self, a, number):
        return self.done(a.value + number, (a, lambda g: g))

    def scale(self, a, factor):
        """By a number, or by an array without a gradient."""
        return self.done(a.value * factor, (a, lambda g: g * factor))

    def einsum(self, equation, a, b):
        inputs, out = equation.split("->")
        first, second = inputs.split(",")
        return self.done(
            self.contract(equation, a.value, b.value),
            (a, lambda g: self.contract(f"{out},{second}->{first}", g, b.value)),
            (b, lambda g: self.contract(f"{out},{first}->{second}", g, a.value)),
        )

    def restored(self, lse):
        """Factors near 1: kernels restore weights from the lse, rounded to a float32 or float64."""
        size = min(self.rounding, 2.0**-23) * np.abs(lse)
        return 1.0 + size * self.rng.uniform(-1.0, 1.0, lse.shape)

    def contract(self, equation, a, b):
        """The products of a sum are rounded, each factor's error standing for them."""
        return contract(equation, self.rounded(a), self.rounded(b))

    def reshape(self, a, shape):
        node = Node(a.value.reshape(shape))
        self.steps.append((node, [(a, lambda g: g.reshape(a.value.shape))]))
        return node

    def transpose(self, a, order):
        node = Node(a.value.transpose(order))
        self.steps.append((node, [(a, lambda g: g.transpose(np.argsort(order)))]))
        return node

    def sigmoid(self, a):
        """Its derivative is taken from the rounded result, near 1 with a large relative error."""
        s = 1.0 / (1.0 + np.exp(-a.value))
        made = self.done(s, (a, lambda g: g * made.value * (1.0 - made.value)))
        return made

    def softplus(self, a):
        return self.done(np.log1p(np.exp(a.value)), (a, lambda g: g / (1.0 + np.exp(-a.value))))

    def cap(self, a, c):
        t = self.rounded(np.tanh(a.value / c), self.tanh_roundings * self.rounding)
        return self.done(c * t, (a, lambda g: g * (1.0 - t * t)))

    def rms(self, x, learned):
        """x over its root mean square, times a learned vector."""
        return self.multiply(self.norm(x), learned)

    def norm(self, x, type="rms", over="head", epsilon=1e-6):
        """Heads (B, T, heads, size) over the root mean square of each, or of all together.

        "layer" takes the mean away first, "l2" divides by the root of the sum of squares.
        """
        axes = (-2, -1) if over == "width" else (-1,)
        if type == "layer":
            x = self.less_mean(x, axes)
        average = np.sum if type == "l2" else np.mean
        squares = average(x.value**2, axis=axes, keepdims=True)
        root = self.rounded(1.0 / np.sqrt(squares + epsilon))

        def share(g):
            mean = self.rounded(average(g * x.value, axis=axes, keepdims=True))
            return root * (g - self.rounded(x.value * root**2 * mean))

        return self.done(x.value * root, (x, share))

    def less_mean(self, x, axes):
        def less(x):
            return x - self.rounded(x.mean(axis=axes, keepdims=True))

        return self.done(less(x.value), (x, less))

    def rotate(self, x, cosine, sine, layout):
        """(B, T, N, H), the first pairs turned by angles (B|1, T, 1, pairs)."""
        pairs = cosine.shape[-1]
        one = np.arange(pairs) if layout == "half" else 2 * np.arange(pairs)
        two = one + pairs if layout == "half" else one + 1

        def turned(x, sine):
            result = x.copy()
            result[..., one] = x[..., one] * cosine - x[..., two] * sine
            result[..., two] = x[..., one] * sine + x[..., two] * cosine
            return result

        return self.done(turned(x.value, sine), (x, lambda g: turned(g, -sine)))

    def look_up(self, table, buckets):
        """(buckets, N) at integers (B|1, T, S): (B|1, N, T, S)."""

        def share(g):
            found = np.zeros_like(table.value)
            np.add.at(found, buckets, np.moveaxis(g, 1, -1))
            return found

        return self.done(np.moveaxis(table.value[buckets], -1, 1), (table, share))

    def pick(self, products, entries):
        """(B, N, T, E) at integers (B|1, T, S) below E: (B, N, T, S)."""
        B, N, T, _ = products.value.shape
        where = np.broadcast_to(entries[:, None], (B, N, T, entries.shape[-1]))

        def share(g):
            found = np.zeros_like(products.value)
            b, n, t, _ = np.indices(where.shape, sparse=True)
            np.add.at(found, (b, n, t, where), g)
            return found

        return self.done(np.take_along_axis(products.value, where, axis=-1), (products, share))

    def part(self, a, start, stop):
        """The features from `start` to `stop`."""

        def share(g):
            found = np.zeros_like(a.value)
            found[..., start:stop] = g
            return found

        node = Node(a.value[..., start:stop])
        self.steps.append((node, [(a, share)]))
        return node

    def join(self, a, b):
        """The features of both, one after the other."""
        size = a.value.shape[-1]
        node = Node(np.concatenate([a.value, b.value], axis=-1))
        self.steps.append((node, [(a, lambda g: g[..., :size]), (b, lambda g: g[..., size:])]))
        return node

    def spread(self, a, shape):
        """Broadcast to a shape."""
        node = Node(np.broadcast_to(a.value, shape))
        self.steps.append((node, [(a, lambda g: g)]))
        return node

    def softmax(self, logits, seen, sink=None):
        """Weights (B, N, T, S), zero where not `seen`; `sink` (N) joins the denominator."""
        x = np.where(seen, logits.value, -np.inf)
        # Any number may be taken from all logits. Of a real one, the derivatives of the logits
        # remain, and cancel with their rounding errors.
        top = x.real.max(axis=-1, keepdims=True, initial=-np.inf)
        own = None if sink is None else sink.value[None, :, None, None]
        top = top if own is None else np.maximum(top, own.real)
        top = np.where(np.isfinite(top), top, 0.0)
        # Of minus infinities, no difference is rounded.
        away = np.where(seen, self.rounded(np.where(seen, x - top, 0.0)), -np.inf)
        numerator = self.rounded(np.exp(away))
        total = numerator.sum(axis=-1, keepdims=True)
        total = total if own is None else total + np.exp(own - top)
        total = self.rounded(np.where(total == 0.0, 1.0, total))
        weights = self.rounded(numerator / total)
        if self.rounding:
            weights = weights * self.restored(top + np.log(abs(total)))

        def mean(g):
            means = self.rounded((g * weights).sum(axis=-1, keepdims=True))
            return means + self.error_of_delta(made.output)

        parents = [(logits, lambda g: weights * (g - mean(g)))]
        if sink is not None:
            of_sink = np.exp(own - top) / total
            # A row without keys gives zero whatever the sink is.
            of_sink = np.where(seen.any(axis=-1, keepdims=True), of_sink, 0.0)
            parents.append((sink, lambda g: (-of_sink * mean(g)).sum(axis=(0, 2, 3))))
        made = self.done(weights, *parents)
        return made

    def error_of_delta(self, output):
        """(B, N, T, 1): kernels take the mean from the output (B, T, K, G, Hv) and its gradient.

        The terms of that sum are others than those of the weights' gradient, from which it is
        taken, so their rounding errors do not cancel.
        """
        if not self.rounding or output is None:
            return 0.0
        size = min(self.rounding, 2.0**-23)
        o, g = output.value, output.gradient
        error = (self.rounded(o, size) * self.rounded(g, size) - o * g).sum(axis=-1)
        error = np.moveaxis(error, 1, 3)
        return error.reshape(error.shape[0], -1, error.shape[3], 1) if error.size else 0.0


def contract(equation, a, b):
    # A sum over no element: the optimised `einsum` refuses it.
    return np.einsum(equation, a, b, optimize=bool(a.size and b.size))


def sum_to(x, shape):
    """Sums an array over the axes along which `shape` was broadcast to it."""
    if x.shape == shape:
        return x
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
    return x.sum(axis=axes, keepdims=True)
