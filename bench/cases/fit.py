"""An epoch of `fit()` of a small model: nothing may be lost where inputs are small."""

from measure import compare
from registry import KERAS, OURS, Case, Settings, ratios

BATCH, BATCHES, FEATURES = 32, 24, 64


def classifier(layer_class, length):
    """A transformer of two blocks over (T, 64) inputs, ten classes."""
    import keras
    from keras import layers

    inputs = keras.Input((length, FEATURES))
    x = inputs
    for _ in range(2):
        attention = layer_class(head_dim=16, num_query_heads=4, num_key_value_heads=2)
        x = layers.LayerNormalization()(x + attention(x, x))
        x = layers.LayerNormalization()(
            x + layers.Dense(FEATURES)(layers.Dense(128, activation="gelu")(x))
        )
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def fit_case(length):
    def measure(settings: Settings) -> dict:
        import keras
        import numpy as np

        import kerasattention

        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH * BATCHES, length, FEATURES)).astype("float32")
        y = rng.integers(0, 10, BATCH * BATCHES)
        classes = {
            KERAS: keras.layers.GroupQueryAttention,
            OURS: kerasattention.GroupQueryAttention,
        }
        models = {label: classifier(cls, length) for label, cls in classes.items()}
        models[OURS].set_weights(models[KERAS].get_weights())
        difference = np.abs(
            models[KERAS].predict_on_batch(x[:BATCH]) - models[OURS].predict_on_batch(x[:BATCH])
        ).max()
        for model in models.values():
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        runs = {
            label: lambda model=model: model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
            for label, model in models.items()
        }
        return compare(runs, settings, float(difference))

    return measure


CASES = [
    Case(
        f"fit-{length}",
        f"`fit()` epoch of a small model, T = {length}, B = {BATCH}",
        "time",
        fit_case(length),
        floors=ratios(1, 1, 1),
    )
    for length in (64, 128)
]
