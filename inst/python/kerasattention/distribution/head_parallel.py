"""A distribution that splits the heads of attention layers over devices."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kerasattention import checks
from kerasattention._keras import set_variable_layout, variable_layout
from kerasattention.distribution.engine import check_backend, mesh_sizes
from kerasattention.distribution.rules import (
    AXES,
    MODEL_AXES,
    Spec,
    axes_of_rule,
    checked_rules,
    matching_rule,
    mlp_axis,
)
from kerasattention.distribution.scope import check_batch, with_distribution
from kerasattention.distribution.split_heads import HeadSplit
from kerasattention.layers.heads import head_axis_by_name, is_packed


class HeadParallel(keras.distribution.ModelParallel):
    """Splits heads over `model` devices, sequences over `seq` and batches over the rest.

    The axis of `model` devices has two parts, of gcd(K, model) and model / gcd(K, model) devices,
    so that K/V heads are split even if there are fewer of them than devices. Weights that no rule
    concerns are whole on each device. Build, compile and fit the model in
    `with_distribution(distribution)`.

    With `seq` of more than 1 each device has a part of each sequence, of T / `seq` tokens. Our
    attention layers send keys and values round the devices (ring attention, Liu et al. 2023,
    https://arxiv.org/abs/2310.01889); memory for activations falls with the number of devices. All
    other layers must act on each token by itself, or XLA gathers what they need. T must be a
    multiple of `seq`. Masks and biases (B, N, T, S), `return_attention_scores`, cross-attention of
    other lengths and decoding are errors.

    Args:
        model: The number of devices for the heads.
        batch: The number of parts of each batch; all remaining devices by default.
        seq: The number of parts of each sequence.
        num_key_value_heads: K. Taken from the attention layers when they are built, by default.
        rules: How other weights are split: patterns that the whole path of a weight matches, with
            a name for each of its axes: "model", "batch" or None. With None instead of names a
            weight stays whole. They precede the rules for heads.
        mlp: Whether the hidden units of `Dense` layers are split whose names are or end in "up",
            "gate" and "down".
        auto_shard_dataset: As in `keras.distribution.ModelParallel`.
    """

    def __init__(
        self,
        model: int,
        batch: int | None = None,
        seq: int = 1,
        num_key_value_heads: int | None = None,
        rules: Mapping[str, Sequence[str | None] | None] | None = None,
        mlp: bool = False,
        auto_shard_dataset: bool = True,
    ) -> None:
        check_backend("`HeadParallel`")
        checks.optional_positive_integer("num_key_value_heads", num_key_value_heads)
        self.mlp = checks.flag("mlp", mlp)
        self.rules = checked_rules(rules)
        sizes = mesh_sizes(model, batch, seq)
        self.heads = HeadSplit(model, num_key_value_heads)
        self._of_data, self._meshes = sizes[:2], {}
        self.used_rules: set[str] = set()
        self._made: list[weakref.ref[Any]] = []
        super().__init__(
            layout_map=keras.distribution.LayoutMap(self.device_mesh),
            batch_dim_name="batch",
            auto_shard_dataset=auto_shard_dataset,
        )

    @property
    def device_mesh(self) -> keras.distribution.DeviceMesh:
        """The mesh of axes "batch", "seq", "model_kv" and "model_rep"."""
        sizes = (*self._of_data, *self.heads.sizes)
        if sizes not in self._meshes:
            devices = keras.distribution.list_devices()
            self._meshes[sizes] = keras.distribution.DeviceMesh(sizes, list(AXES), devices)
        return self._meshes[sizes]

    def scope(self) -> Any:
        """As `with_distribution()`."""
        return with_distribution(self)

    @property
    def seq_axis(self) -> str | None:
        """The axis of the mesh that splits sequences; None if none does."""
        return "seq" if self._of_data[1] > 1 else None

    def get_data_layout(self, data_shape: Sequence[int]) -> Any:
        """The layout of a batch: tokens are axis 1, and split where they divide."""
        check_batch(data_shape, self)
        batch, seq = self._of_data
        # With more processes than parts of a batch each process has whole sequences to give.
        is_whole = seq == 1 or self.num_processes > batch
        if is_whole or len(data_shape) < 2 or data_shape[1] % seq:
            return super().get_data_layout(data_shape)
        axes = ["batch", "seq", *(None for _ in data_shape[2:])]
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def get_variable_layout(self, variable: Any) -> Any:
        """The sharding of a weight.

        Raises:
            ValueError: An attention layer whose heads, or a weight whose axis cannot be split.
        """
        layout = variable_layout(variable)
        if layout is not None:
            return layout
        path, shape = variable.path, tuple(variable.shape)
        before = self.heads.sizes
        self.note(path, shape)
        if self.heads.sizes != before:
            self._move_to_mesh()
        self._made.append(weakref.ref(variable))
        return self.sharding(self.layout_of(path, shape)[0])

    def _move_to_mesh(self) -> None:
        """Gives the weights that were made before the heads were known the mesh of all others.

        Each device keeps its part: only the names of the axes change.
        """
        variables = [variable for made in self._made if (variable := made()) is not None]
        for variable in variables:
            spec, _ = self.layout_of(variable.path, tuple(variable.shape))
            set_variable_layout(variable, self.sharding(spec))

    def sharding(self, spec: Spec) -> Any:
        """JAX's sharding: a layout of Keras cannot split an axis over two axes of the mesh."""
        from jax.sharding import NamedSharding, PartitionSpec

        return NamedSharding(self.device_mesh.backend_mesh, PartitionSpec(*spec))

    def has_rule(self, path: str) -> bool:
        """Whether one of `rules` says how a weight is split."""
        return matching_rule(self.rules, path) is not None

    def note(self, path: str, shape: Sequence[int]) -> None:
        """Notes the heads that a kernel shows. Comes before the layout of any weight of a layer."""
        self.heads.note(path, shape, is_checked=not self.has_rule(path))

    def layout_of(self, path: str, shape: Sequence[int]) -> tuple[Spec, str]:
        """The axes of the mesh for each axis of a weight, and the reason.

        Raises:
            ValueError: A rule that names an axis whose size its devices do not divide.
        """
        rule = matching_rule(self.rules, path)
        if rule is not None:
            self.used_rules.add(rule)
            spec = axes_of_rule(self.rules[rule], shape, path)
            self._check_divides(spec, path, shape)
            return spec, f"rule {rule!r}"
        axis, of_query = head_axis_by_name(path, len(shape))
        if axis is not None and self.heads.has_layer_of(path):
            noun = "query heads" if of_query else "key/value heads"
            return self._along(axis, shape, noun, few=not of_query)
        axis = mlp_axis(path, len(shape)) if self.mlp else None
        if axis is not None:
            self.used_rules.add("mlp")
            return self._along(axis, shape, "hidden units", few=False)
        packed = is_packed(path, len(shape)) and self.heads.has_layer_of(path)
        why = "int4, packed without an axis of heads" if packed else "no rule"
        return (None,) * len(shape), f"replicated: {why}"

    def _along(self, axis: int, shape: Sequence[int], noun: str, few: bool) -> tuple[Spec, str]:
        """Splits one axis over all `model` devices, or over as many as it has heads."""
        size, (first, second) = shape[axis], self.heads.sizes
        spec: list[Any] = [None] * len(shape)
        if self.heads.model == 1:
            return tuple(spec), "replicated: `model` is 1"
        if size == 1 and noun == "query heads":
            return tuple(spec), "replicated: one for all heads"
        if size % self.heads.model == 0:
            spec[axis] = MODEL_AXES
            return tuple(spec), noun
        if few and size == first:
            spec[axis] = MODEL_AXES[0]
            return tuple(spec), f"{noun}, each on {second} devices"
        return tuple(spec), f"replicated: {size} {noun} do not divide by {self.heads.model}"

    def _check_divides(self, spec: Spec, path: str, shape: Sequence[int]) -> None:
        mesh: dict[str, int] = dict(zip(AXES, self.device_mesh.shape, strict=True))
        for axis, names in enumerate(spec):
            parts = 1
            for name in [names] if isinstance(names, str) else names or ():
                parts *= mesh[name]
            if shape[axis] % parts:
                raise ValueError(
                    f"`rules` must split axes into equal parts. Received: {path!r} of shape "
                    f"{tuple(shape)}, whose axis {axis} does not divide by {parts}"
                )
