"""The embedded tiny SDXL: a real, trained model of four million parameters, as data."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tiny_sdxl_path"]


def tiny_sdxl_path() -> Path:
    """The folder of the embedded model, for ``StableDiffusionXLPipeline.from_pretrained``.

    Returns
    -------
    pathlib.Path
        A folder as ``save_pretrained`` writes it, in float16, 6.9 MB. It knows pictures of
        128 x 128 pixels and prompts of the form "a large red circle on a blue background"; its
        ``README.md`` is the model card.
    """
    return Path(__file__).parent / "tiny_sdxl"
