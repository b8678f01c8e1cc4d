"""Functions of R as initializers, regularizers and constraints, in this session and in another."""

import _thread
import threading

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import _bridge

X = tensor(np.array([[1.0, -2.0, 3.0]]))


def made(kind, function, argument="kernel_initializer"):
    return _bridge.keras_function(kind, argument, function, "function(x) 1")


def of_another_session(kind, argument):
    """As a file of a session that has ended has it."""
    config = made(kind, None, argument).get_config()
    return type(made(kind, None)).from_config({**config, "key": "of another session"})


def test_a_copy_by_config_calls_the_same_function():
    initializer = made("initializer", lambda shape, dtype: np.full(shape, 7.0))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(initializer))
    assert copy is not initializer
    found = copy((2, 3), dtype="float32")
    np.testing.assert_array_equal(to_numpy(found), np.full((2, 3), 7.0))


def test_results_of_the_functions():
    penalty = made("regularizer", lambda x: keras.ops.sum(x, keepdims=True))(X)
    assert tuple(penalty.shape) == ()
    assert float(penalty) == 2.0
    constrained = made("constraint", lambda x: keras.ops.maximum(x, 0.0))(X)
    np.testing.assert_array_equal(to_numpy(constrained), [[1.0, 0.0, 3.0]])


def test_results_of_a_wrong_shape_are_refused_by_argument():
    initializer = made("initializer", lambda shape, dtype: np.zeros(5), "bias_initializer")
    with pytest.raises(ValueError, match=r"`bias_initializer` must return .*\(2, 3\).*\(5,\)"):
        initializer((2, 3))
    regularizer = made("regularizer", lambda x: x, "bias_regularizer")
    with pytest.raises(ValueError, match=r"`bias_regularizer` must return one number.*\(1, 3\)"):
        regularizer(X)


def test_without_the_function_nothing_passes_for_a_result():
    initializer = of_another_session("initializer", "kernel_initializer")
    assert np.isnan(to_numpy(initializer((2, 3), "float32"))).all()
    activity = of_another_session("regularizer", "activity_regularizer")
    assert np.isnan(float(activity(X)))
    for kind, argument in (("regularizer", "bias_regularizer"), ("constraint", "bias_constraint")):
        with pytest.raises(RuntimeError, match=f"`{argument}` was an R function of another"):
            of_another_session(kind, argument)(X)


def test_a_mask_of_r_is_called_in_threads_of_python_only():
    """A thread of the backend would wait for R, and R for it."""
    function = _bridge.mask_function(lambda q, k, known: k <= q, "function(q, k) k <= q")
    q, k = tensor(np.arange(3)[None, None, :, None]), tensor(np.arange(3)[None, None, None])
    found = []

    def call():
        try:
            found.append(to_numpy(function(q, k))[0, 0])
        except RuntimeError as error:
            found.append(str(error))

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    done = threading.Event()
    _thread.start_new_thread(lambda: (call(), done.set()), ())
    assert done.wait(60)
    for seen in found[:2]:
        np.testing.assert_array_equal(seen, np.tri(3, dtype=bool))
    assert "function(q, k) k <= q" in found[2]
    assert "mask_window()" in found[2]
