"""What diffusers alone draws with the embedded model."""

from __future__ import annotations

import pytest

from sdxl_scenes import SCENES, draw, load


@pytest.fixture(scope="session")
def eager_pipeline():
    """What diffusers loads; tests may lend it to a session, which has to give it back."""
    return load()


@pytest.fixture(scope="session")
def eager_pictures(eager_pipeline):
    """What diffusers draws in float32, one picture a scene."""
    return [draw(eager_pipeline, scene) for scene in SCENES]
