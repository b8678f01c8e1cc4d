"""A decoder that is kept for the next call, on torch."""

import gc
import weakref

import keras

import kerasattention as ka
from test_stale_decoders import PROMPT, built


def test_a_kept_decoder_does_not_keep_its_model():
    model = built()
    ka.generate(model, PROMPT, 2)
    kept = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert kept() is None
