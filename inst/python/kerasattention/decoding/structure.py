"""The structure of a model, noted so that a later change of it is detected.

A decoder is made from the layers of a model. With a layer exchanged, LoRA enabled or weights
quantised it would compute the earlier model. Identities are compared, not values: weights may
change, variables may not.
"""

import itertools
import operator
import types
import weakref
from typing import Any

import keras
import numpy as np

from kerasattention._keras import BOOKKEEPING, LAYERS_ON_TORCH, OF_TRAINERS, Node, stored_value

# Bookkeeping of the backends' own module classes, and what Keras derives from `call()`.
_PREFIXES = (
    *("_self_", "_forward_", "_backward_", "_state_dict_", "_load_state_dict_", "_tf_"),
    *("call_sig", "_call_"),
)
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, np.ndarray)
# Objects that change no result, or that are replaced rather than changed.
_WHOLE = (
    *(keras.KerasTensor, keras.optimizers.Optimizer, keras.metrics.Metric, keras.Initializer),
    *(keras.regularizers.Regularizer, keras.constraints.Constraint),
    *(keras.dtype_policies.DTypePolicy, keras.InputSpec, weakref.ref, Node),
)
_FOREIGN = ("tensorflow", "jax", "torch", "numpy", "threading", "_thread")

# The attributes of an object with the names that do not count, a container, or a function.
Place = tuple[Any, set[str]]


class Structure:
    """The layers of a model, their attributes and variables at one time.

    The model itself is not kept alive.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = weakref.ref(model)
        self._places: list[Place] = []
        self._functions: list[types.FunctionType] = []
        self._variables: list[keras.Variable] = []
        self._seen: dict[int, Any] = {id(model): None}
        self._own = _counted(vars(model), _ignored(model))
        self._own_ids: list[int] = []
        self._add_parts(self._own, _ignored(model))
        self._noted = [_counted(x, ignored) for x, ignored in self._places]
        self._enclosed = [_enclosed(x) for x in self._functions]
        self._memory = _memory_of(self._variables)
        # Views, which show the present content of an object.
        self._views = [x.values() if isinstance(x, dict) else x for x, _ in self._places]
        self._note_views()

    def is_current(self) -> bool:
        """Whether nothing that was noted has changed since."""
        model = self._model()
        if model is None:  # immutable
            return True
        if not self._is_own_unchanged(model):
            return False
        enclosed = [_enclosed(x) for x in self._functions]
        if not all(map(_same, enclosed, self._enclosed)):
            return False
        if _memory_of(self._variables) != self._memory:
            return False
        if self._are_views_untouched():
            return True
        found = (_counted(x, ignored) for x, ignored in self._places)
        if not all(map(_same, found, self._noted)):
            return False
        self._note_views()
        return True

    def _is_own_unchanged(self, model: keras.Model) -> bool:
        """Whether the model's own attributes that count are those noted."""
        # Identities are enough: what was noted is alive, so no other object has one of these.
        ids = list(map(id, vars(model).values()))
        if ids == self._own_ids:
            return True
        if not _same(_counted(vars(model), _ignored(model)), self._own):
            return False
        self._own_ids = ids
        return True

    def _are_views_untouched(self) -> bool:
        """The fast check: whether no attribute has changed, not even one that does not count."""
        if sum(map(len, self._views)) != len(self._parts):
            return False
        return all(map(operator.is_, itertools.chain.from_iterable(self._views), self._parts))

    def _note_views(self) -> None:
        self._parts = tuple(itertools.chain.from_iterable(self._views))

    # Collecting -----------------------------------------------------------------

    def _add_parts(self, parts: dict[Any, Any], ignored: set[str]) -> None:
        for name, part in parts.items():
            self._add(part, ignored if name == LAYERS_ON_TORCH else set())

    def _add(self, x: Any, ignored: set[str]) -> None:
        if isinstance(x, (*_ATOMS, *_WHOLE)) or id(x) in self._seen:
            return
        self._seen[id(x)] = x  # kept, so that its identity is not given to another
        if isinstance(x, keras.Variable):
            self._variables.append(x)
        elif isinstance(x, (dict, list, set)):
            self._add_place(x, ignored)
        elif isinstance(x, (tuple, frozenset)):
            self._add_parts(dict(enumerate(x)), set())
        elif isinstance(x, types.MethodType):
            self._add_parts({0: x.__func__, 1: x.__self__}, set())
        elif isinstance(x, types.FunctionType):
            self._functions.append(x)
            self._add_parts(_enclosed(x), set())
        elif hasattr(x, "__dict__") and not _is_foreign(x):
            self._add_place(vars(x), _ignored(x))

    def _add_place(self, x: Any, ignored: set[str]) -> None:
        self._places.append((x, ignored))
        self._add_parts(_counted(x, ignored), ignored)


def _ignored(x: Any) -> set[str]:
    return BOOKKEEPING | OF_TRAINERS if isinstance(x, keras.Model) else BOOKKEEPING


def _counted(x: Any, ignored: set[str]) -> dict[Any, Any]:
    """The parts of a place that count."""
    if not isinstance(x, dict):
        return dict(enumerate(x))
    if not ignored:
        return dict(x)
    return {
        name: part
        for name, part in x.items()
        if name not in ignored and not name.startswith(_PREFIXES)
    }


def _enclosed(function: types.FunctionType) -> dict[int, Any]:
    """The code, the defaults and the enclosed values of a function."""
    cells = [x for x in function.__closure__ or () if x != types.CellType()]
    values = [function.__code__, function.__defaults__, *(x.cell_contents for x in cells)]
    return dict(enumerate(values))


def _same(found: dict[Any, Any], noted: dict[Any, Any]) -> bool:
    return found.keys() == noted.keys() and all(found[name] is noted[name] for name in noted)


def _is_foreign(x: Any) -> bool:
    """Whether an object belongs to a backend or to Keras's bookkeeping."""
    return not isinstance(x, keras.layers.Layer) and type(x).__module__.startswith(_FOREIGN)


def _memory_of(variables: list[keras.Variable]) -> list[int]:
    """Addresses of weights that a backend changes in place: compiled code refers to them."""
    backend = keras.backend.backend()
    if backend == "jax":
        return []
    values = [stored_value(variable) for variable in variables]
    return [x.data_ptr() for x in values] if backend == "torch" else [id(x) for x in values]
