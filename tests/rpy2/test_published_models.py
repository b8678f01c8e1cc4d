"""Each published model of the R example is the one that is compared with `transformers`."""

import pytest

from published_models import MODELS

SOURCE = "source(system.file('examples/published-models.R', package = 'kerasattention'), TRUE);"


def as_plain(config):
    """A layer's config without what differs from object to object."""
    position = dict(config.pop("position") or {})
    position.pop("shared_object_id", None)
    inner = dict(position.get("config", {}))
    return config | {"position": position | {"config": inner | {"name": None}}, "name": None}


def test_the_example_has_every_model(ro):
    assert list(ro.r(SOURCE + "names(published_models)")) == list(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_layer_of_r_is_the_one_compared(from_r, name):
    made = from_r(SOURCE + f"eval(published_models[['{name}']])")
    expected = MODELS[name].full()
    assert type(made) is type(expected)
    assert as_plain(made.get_config()) == as_plain(expected.get_config())
