"""Small models for 8 devices; their sizes are distinct."""

import keras
import numpy as np

import kerasattention as ka

WORDS, WIDTH, LENGTH, ROWS = 40, 24, 5, 16


def decoder(query=8, key_value=2, kind="ours", **options):
    """Embeds tokens, attends, and has an MLP with names that `mlp` knows."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDTH, name="tok")(tokens)
    owner = ka if kind == "ours" else keras.layers
    layer = owner.GroupQueryAttention(3, query, key_value, name="att", **options)
    attended = layer(x, x, use_causal_mask=True)
    x = keras.layers.Add()([x, attended])
    h = keras.layers.Dense(56, activation="gelu", name="b0_up")(x)
    x = keras.layers.Add()([x, keras.layers.Dense(WIDTH, name="b0_down")(h)])
    model = keras.Model(tokens, keras.layers.Dense(WORDS, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def tokens(rows=ROWS):
    x = np.random.default_rng(1).integers(1, WORDS, (rows, LENGTH)).astype("int32")
    return x, np.roll(x, -1, 1)


def trained(model, epochs=2):
    """Losses of two epochs, then the predictions and weights."""
    x, y = tokens()
    losses = model.fit(x, y, batch_size=ROWS, epochs=epochs, shuffle=False, verbose=0)
    out = model.predict(x, batch_size=ROWS, verbose=0)
    return np.array(losses.history["loss"]), out, model.get_weights()


def specs(model):
    """The axes of the mesh of each weight, by path, without those of whole weights."""
    found = {v.path: tuple(v.value.sharding.spec) for v in model.variables}
    return {path: spec for path, spec in found.items() if any(spec)}
