"""What shapes a model takes."""

from __future__ import annotations


def image_shape(model: str, input_shape: tuple[int, ...], at_least: int = 1) -> tuple[int, int, int]:
    """(channels, height, width) of an image of at least `at_least` pixels a side; ValueError otherwise."""
    if len(input_shape) != 3:
        raise ValueError(
            f"model {model} needs images (channels, height, width), got records of shape {input_shape}: "
            "use train.model_name mlp, or a dataset of images"
        )
    channels, height, width = input_shape
    if min(height, width) < at_least:
        raise ValueError(
            f"model {model} needs images of at least {at_least} x {at_least} pixels, got {height} x {width} "
            f"(shape {input_shape}): use train.model_name mlp, or larger images"
        )
    return channels, height, width
