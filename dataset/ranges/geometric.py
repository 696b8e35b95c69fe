"""Pictures that a camera, a scanner or an editor could have made of the same thing: flips, rotations, crops, …"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Interval, Le, MinLen
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from core.registry import Registry
from core.rng import stream
from core.types import AuditData
from dataset.ranges.base import RANGES, bound
from dataset.ranges.l2 import squared_distances

if TYPE_CHECKING:
    import torch

# (image (..., C, H, W), generator, *, settings) -> image, the same for all images of a batch. `outcomes` is how many
# pictures it can make of one, a function of its settings; infinitely many if it is not given.
TRANSFORMATIONS = Registry("transformation")

TRIES = 1000  # draws per sample before it is said that there are too few
Amount = Annotated[float, Interval(ge=0, lt=1)]


@TRANSFORMATIONS.register("horizontal_flip", outcomes=lambda settings: 2)
def horizontal_flip(
    image: torch.Tensor, draw: np.random.Generator, *, p: Annotated[float, Interval(gt=0, lt=1)] = 0.5
) -> torch.Tensor:
    """Mirrored left to right with probability `p`."""
    from torchvision.transforms.v2 import functional

    return functional.horizontal_flip(image) if draw.random() < p else image


@TRANSFORMATIONS.register("vertical_flip", outcomes=lambda settings: 2)
def vertical_flip(
    image: torch.Tensor, draw: np.random.Generator, *, p: Annotated[float, Interval(gt=0, lt=1)] = 0.5
) -> torch.Tensor:
    """Upside down with probability `p`."""
    from torchvision.transforms.v2 import functional

    return functional.vertical_flip(image) if draw.random() < p else image


@TRANSFORMATIONS.register("rotate")
def rotate(
    image: torch.Tensor, draw: np.random.Generator, *, degrees: Annotated[float, Gt(0), Le(180)] = 30.0
) -> torch.Tensor:
    """Rotated by up to `degrees` either way; corners that come into view are 0."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    return functional.rotate(image, float(draw.uniform(-degrees, degrees)), InterpolationMode.BILINEAR)


@TRANSFORMATIONS.register("shift", outcomes=lambda settings: (2 * settings["pixels"] + 1) ** 2)
def shift(image: torch.Tensor, draw: np.random.Generator, *, pixels: Annotated[int, Ge(1)] = 2) -> torch.Tensor:
    """Moved by whole pixels, up to `pixels` in either direction of both axes; what comes into view is reflected."""
    from torchvision.transforms.v2 import functional

    height, width = image.shape[-2:]
    if pixels >= min(height, width):
        raise ValueError(f"shift: pixels {pixels} is too far for pictures of {height} x {width}")
    top, left = (int(i) for i in draw.integers(0, 2 * pixels + 1, size=2))
    padded = functional.pad(image, [pixels] * 4, padding_mode="reflect")
    return functional.crop(padded, top, left, height, width)


@TRANSFORMATIONS.register("crop")
def crop(
    image: torch.Tensor, draw: np.random.Generator, *, least: Annotated[float, Interval(gt=0, lt=1)] = 0.8
) -> torch.Tensor:
    """A random window with at least a share `least` of each side, enlarged to the whole picture."""
    from torchvision.transforms.v2 import functional

    height, width = image.shape[-2:]
    side = draw.uniform(least, 1)
    h, w = max(1, round(side * height)), max(1, round(side * width))
    top, left = int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1))
    return functional.resized_crop(image, top, left, h, w, [height, width], antialias=True)


@TRANSFORMATIONS.register("color_jitter")
def color_jitter(
    image: torch.Tensor,
    draw: np.random.Generator,
    *,
    brightness: Amount = 0.2,
    contrast: Amount = 0.2,
    saturation: Amount = 0.2,
) -> torch.Tensor:
    """Brightness, contrast and (of colour pictures) saturation, each times a factor within 1 ± the amount."""
    from torchvision.transforms.v2 import functional

    b, c, s = (float(draw.uniform(1 - a, 1 + a)) for a in (brightness, contrast, saturation))
    image = functional.adjust_contrast(functional.adjust_brightness(image, b), c)
    return functional.adjust_saturation(image, s) if image.shape[-3] == 3 else image


@RANGES.register("geometric", kind="images", summary="pictures after random flips, rotations, shifts, crops, colours")
def geometric(
    data: AuditData,
    *,
    transformations: Annotated[list[str | dict[str, Any]], MinLen(1)],
    probes: Annotated[int, Ge(1)] = 32,
    tolerance: Annotated[float, Ge(0)] = 0.1,
) -> Pictures:
    """All transformations, one after the other in their order, each with random parameters.

    transformations: names, or {name: rotate, degrees: 15}. There are horizontal_flip, vertical_flip, rotate, shift,
        crop and color_jitter; a plugin may register more.
    probes, tolerance: whether a training image lies in the range is looked for among the center and `probes` random
        pictures of the range: it does if its pixels differ from one of them by at most `tolerance` of the data's
        standard deviation (root mean square). So duplicates and near-duplicates are found, but a picture that only
        some untried parameters would reach is not: interpolation makes the exact question undecidable.
    """
    try:
        steps = tuple(bound(TRANSFORMATIONS, value) for value in transformations)
    except ValueError as error:
        raise ValueError(f"transformations: {error}") from None
    pictures = Pictures(steps, data.input_shape, probes, tolerance * float(np.mean(data.std)))
    # Once for nothing: a setting that does not fit the size of the pictures shows here.
    pictures._picture(np.zeros(data.input_shape, dtype=np.uint8), stream(0, "geometric", "fits"))
    return pictures


@dataclass(frozen=True)
class Pictures:
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    shape: tuple[int, ...]
    probes: int
    tolerance: float  # root-mean-square difference, in pixel levels

    @property
    def description(self) -> str:
        return f"pictures after {', '.join(name for name, _ in self.steps)}"

    def points(self) -> float:
        outcomes = (TRANSFORMATIONS.fact(name, "outcomes", None) for name, _ in self.steps)
        counts = [
            known(settings) if known else math.inf for known, (_, settings) in zip(outcomes, self.steps, strict=True)
        ]
        return math.prod(counts) - 1

    def sample(self, center: Shaped[Array, "C H W"], count: int, draw: np.random.Generator) -> Shaped[Array, "K C H W"]:
        found = {center.tobytes(): center}
        for _ in range(TRIES * count):
            picture = self._picture(center, draw)
            found.setdefault(picture.tobytes(), picture)
            if len(found) > count:
                return np.stack(list(found.values())[1:])
        raise ValueError(
            f"geometric: {self.description} has {len(found) - 1} distinct pictures beside the center, and {count} "
            "samples are asked for: lower sample_size or add a transformation"
        )

    def _picture(self, image: Shaped[Array, "*n C H W"], draw: np.random.Generator) -> Shaped[Array, "*n C H W"]:
        """One picture of the range, by the same parameters for each image given."""
        import torch

        made = torch.from_numpy(image.copy())
        for name, settings in self.steps:
            made = TRANSFORMATIONS[name](made, draw, **settings)
        return made.contiguous().numpy()

    def inside(self, centers: Shaped[Array, "n C H W"], records: Shaped[Array, "d C H W"]) -> Bool[Array, "n d"]:
        """By probing, see `geometric`: the center and the same `probes` transformations of every center."""
        limit = self.tolerance**2 * math.prod(self.shape) * (1 + 1e-9)
        found = squared_distances(centers, records) <= limit
        for probe in range(self.probes):
            pictures = self._picture(centers, stream(0, "geometric", "probe", probe))
            found |= squared_distances(pictures, records) <= limit
        return found
