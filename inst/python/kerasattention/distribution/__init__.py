"""Models on several devices, with `keras.distribution`: splits heads and batches, and checks it."""
