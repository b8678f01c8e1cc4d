"""Groups of key heads that TensorFlow's loop computes one after the other."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import kerasattention
from backends import tensor, to_numpy
from fresh import run_fresh
from kerasattention import MultiHeadAttention, RelativeKeysPosition
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow import loop, loop_blocks
from kerasattention.attend.kernels.tensorflow.head_groups import (
    can_split_heads,
    can_split_heads_and_bias,
)
from kerasattention.attend.mask import AttentionMask
from problems import OF_EACH_KIND, PROBLEMS, SMALL_BLOCK, block_size, engine_options
from test_loop_tensorflow import check, looped


def split(inputs):
    return can_split_heads(inputs) or can_split_heads_and_bias(inputs)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_heads_give_one_by_one_what_they_give_together(name, monkeypatch):
    monkeypatch.setattr(loop, "is_head_by_head", split)
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation=looped(0))


def long(heads, groups, keys, **options):
    query = tf.zeros((1, heads, groups, 1, 2))
    key = tf.zeros((1, heads, keys, 2))
    return AttentionInputs(query, key, key, AttentionMask(causal=True, **options))


def test_heads_are_split_where_their_logits_are_many():
    assert loop_blocks.is_head_by_head(long(11, 1, 2**14))
    assert loop_blocks.choose_block_size(long(8, 1, 2**14)) == 256
    for together in (long(8, 1, 2**11), long(8, 2, 2**14), long(8, 1, 2**14, window=256)):
        assert not loop_blocks.is_head_by_head(together)


@pytest.mark.parametrize(
    ("kind", "causal", "is_known"),
    [("deberta", True, False), ("huang", False, True), ("transformer_xl", True, True)],
)
def test_relative_keys_give_head_by_head_what_they_give_together(
    kind, causal, is_known, monkeypatch
):
    heads, length, size = 3, 23, 6
    layer = MultiHeadAttention(heads, size, position=RelativeKeysPosition(4, kind))
    layer.build((2, length, 5), (2, length, 5))
    rng = np.random.default_rng(3)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    x = tensor(rng.normal(size=(2, length, 5)).astype("float32"))

    def results():
        @tf.function(autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = layer(x, x, use_causal_mask=causal)
                loss = tf.reduce_sum(tf.sin(output))
            return output, *tape.gradient(loss, [x, *layer.trainable_variables])

        shape = x.shape if is_known else (None, None, 5)
        graph = run.get_concrete_function(tf.TensorSpec(shape))
        return [to_numpy(found) for found in graph(x)]

    with engine_options(block_size=4, implementation=looped(0)):
        together = results()
        heads_seen = []

        def counted(inputs):
            heads_seen.append(inputs.kv_heads)
            return split(inputs)

        monkeypatch.setattr(loop, "is_head_by_head", counted)
        apart = results()
    assert heads_seen
    assert set(heads_seen) == {heads}
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * max(1, np.abs(a).max()))


JACOBIANS = """
import numpy as np, tensorflow as tf
import test_head_groups_tensorflow as test
from kerasattention import MultiHeadAttention, RelativeKeysPosition
from kerasattention.attend.kernels.tensorflow import loop

layer = MultiHeadAttention(3, 4, position=RelativeKeysPosition(2, "deberta"))
layer.build((1, 7, 5), (1, 7, 5))
x = tf.constant(np.random.default_rng(0).normal(size=(1, 7, 5)).astype("float32"))

@tf.function(autograph=False)
def jacobian(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x, x, use_causal_mask=True)
    return tape.jacobian(output, x)

found = [jacobian(x).numpy()]
for split in (False, True):
    loop.is_head_by_head = test.split if split else lambda inputs: False
    jacobian = tf.function(jacobian.python_function, autograph=False)
    with test.engine_options(block_size=3, implementation=test.looped(0)):
        found.append(jacobian(x).numpy())
agree = [bool(np.allclose(one, found[0], atol=1e-5)) for one in found[1:]]
print(agree, np.abs(found[0]).max() > 0.01)
"""


def test_jacobians_that_are_vectorised(tmp_path):
    # Of sums that are added in place. With oneDNN TensorFlow 2.21 computes products wrongly there.
    tests = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(pathlib.Path(kerasattention.__file__).parent.parent), str(tests)])
    variables = {"TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "tensorflow", "PYTHONPATH": path}
    lines, _ = run_fresh(JACOBIANS, tmp_path, **variables)
    assert lines[-1] == "[True, True] True"
