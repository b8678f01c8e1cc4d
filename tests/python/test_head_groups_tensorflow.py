"""Groups of key heads that TensorFlow's loop computes one after the other."""

import pytest
import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow import loop, loop_blocks
from kerasattention.attend.kernels.tensorflow.head_groups import can_split_heads
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from problems import OF_EACH_KIND, PROBLEMS, SMALL_BLOCK, block_size
from test_loop_tensorflow import check, looped


def each_head(inputs):
    if not can_split_heads(inputs):
        return [Span(0, inputs.kv_heads)]
    return [Span(head, 1) for head in range(inputs.kv_heads)]


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_heads_give_one_by_one_what_they_give_together(name, monkeypatch):
    monkeypatch.setattr(loop, "plan_head_groups", each_head)
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation=looped(0))


def long(heads, groups, keys, **options):
    query = tf.zeros((1, heads, groups, 1, 2))
    key = tf.zeros((1, heads, keys, 2))
    return AttentionInputs(query, key, key, AttentionMask(causal=True, **options))


def test_heads_are_split_where_their_logits_are_many():
    sizes = [x.size for x in loop_blocks.plan_head_groups(long(11, 1, 2**14))]
    assert sizes == [2, 2, 2, 2, 2, 1]
    assert loop_blocks.choose_block_size(long(8, 1, 2**14)) == 256
    for together in (long(8, 1, 2**11), long(8, 2, 2**14), long(8, 1, 2**14, window=256)):
        assert len(loop_blocks.plan_head_groups(together)) == 1
