"""What `test_sharded_jax.py` looks at, computed in a process in which JAX has 8 devices.

Run as a program; prints a line of JSON for each case: its group, its name and what was found.
"""

import json
import sys
import traceback

import kerasattention as ka
import sharded_behaviour
import sharded_decoding
from sharded_models import (
    Case,
    HeadParallel,
    compared,
    counted,
    data_parallel,
    features_split,
    model_parallel,
)


def rotary():
    return {
        "position": ka.RotaryPosition(),
        "sliding_window": 300,
        "qk_norm": {"after_position": True},
        "scale": "learned",
        "use_gate": True,
    }


def alibi():
    return {"position": ka.AlibiPosition(), "attention_sink": True}


def relative():
    return {"position": ka.RelativePosition(16, 40, name="relative"), "logit_soft_cap": 5.0}


def relative_keys():
    return {"position": ka.RelativeKeysPosition(20, "transformer_xl", name="relative")}


def dropped(**options):
    return {"dropout": 0.3, "seed": 11, **options}


def two_axes():
    return HeadParallel(2, 2, 2)


COUNTED = {
    "data 8, T 16": Case(data_parallel, length=16),
    "data 8, batch 24": Case(data_parallel, length=1280, batch=24, heads=24, options=dropped),
    "data 8, accelerator": Case(data_parallel, accelerator=True),
    "model 2x4, rotary, window, norm, scale, gate": Case(
        lambda: model_parallel(2, 4), options=rotary
    ),
    "model 2x4, K 2 whole": Case(lambda: model_parallel(2, 4, False), key_heads=2),
    "model 1x8, N over ragged K": Case(
        lambda: model_parallel(1, 8, False), batch=2, heads=24, key_heads=6
    ),
    "heads 2x2x2, T 16": Case(two_axes, length=16, key_heads=2),
    "heads 1x1x8, segments, relative, cap": Case(
        lambda: HeadParallel(1, 1, 8), batch=2, key_heads=1, options=relative, segments=True
    ),
    "heads 2x2x2, accelerator": Case(two_axes, key_heads=2, accelerator=True),
    "heads 2x2x2, padding, alibi, sink": Case(two_axes, key_heads=2, options=alibi, padding=True),
    "heads 2x2x2, dropout": Case(two_axes, key_heads=2, options=dropped),
    "control: sample loop over the whole batch": Case(
        data_parallel, length=1280, batch=24, unshared=True
    ),
    "control: features split": Case(features_split, length=16),
}

SMALL = {"length": 37, "tiles": True}
COMPARED = {
    "data 8": Case(
        data_parallel, batch=16, options=lambda: dropped(**alibi()), padding=True, **SMALL
    ),
    "model 2x4, K 2 whole": Case(
        lambda: model_parallel(2, 4, False),
        key_heads=2,
        options=lambda: dropped(**relative()),
        padding=True,
        **SMALL,
    ),
    "model 1x8, N over ragged K": Case(
        lambda: model_parallel(1, 8, False),
        heads=24,
        key_heads=6,
        options=lambda: dropped(**alibi()),
        **SMALL,
    ),
    "heads 2x2x2": Case(
        two_axes,
        key_heads=2,
        options=lambda: dropped(**rotary(), attention_sink=True, mask=ka.ChunkMask(11)),
        segments=True,
        **SMALL,
    ),
    "model 2x4, relative keys": Case(
        lambda: model_parallel(2, 4, False), key_heads=2, options=relative_keys, **SMALL
    ),
    "heads 2x2x2, accelerator": Case(
        two_axes, length=280, key_heads=2, options=lambda: dropped(**relative()), accelerator=True
    ),
}

GROUPS = (
    ("count", counted, COUNTED),
    ("compare", compared, COMPARED),
    ("behaviour", lambda function: function(), sharded_behaviour.CASES),
    ("decode", sharded_decoding.decoded, sharded_decoding.CASES),
)


def main(names):
    for group, function, cases in GROUPS:
        for name, case in cases.items():
            if names and name not in names and group not in names:
                continue
            try:
                found = function(case)
            except Exception:
                found = {"error": traceback.format_exc()}
            print(json.dumps([group, name, found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
