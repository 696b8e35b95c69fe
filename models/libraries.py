"""Whatever torchvision or timm can build, by `torchvision/<name>` or `timm/<name>`. No pretrained weights."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch

# Their training outputs are tuples and their default initialisation warns, unless told otherwise.
_AUXILIARY = {"googlenet", "inception_v3"}


@MODELS.register("torchvision/*", summary="any classifier of torchvision, e.g. torchvision/resnet50", needs="image")
def torchvision(input_shape: tuple[int, ...], num_classes: int, name: str) -> torch.nn.Module:
    """A classifier of torchvision with fresh weights; its first convolution takes the images' channels."""
    import torchvision

    channels, _, _ = image_shape(f"torchvision/{name}", input_shape)
    _require(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if channels != 3:
        _replace_first_convolution(model, channels)
    return model


@MODELS.register("timm/*", summary="any classifier of timm (optional: pip install timm)", needs="image")
def timm(input_shape: tuple[int, ...], num_classes: int, name: str) -> torch.nn.Module:
    """A classifier of timm with fresh weights for the images' channels."""
    channels, _, _ = image_shape(f"timm/{name}", input_shape)
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"model timm/{name} needs the optional package timm: pip install timm, or use a model of torchvision"
        ) from None
    _require(name, timm.list_models(), "timm")
    return timm.create_model(name, pretrained=False, in_chans=channels, num_classes=num_classes)


def _require(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        near = [f"{library}/{match}" for match in get_close_matches(name, known)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:5])}, …"
        raise ValueError(f"{library} has no classifier {name!r}: {hint}")


def _replace_first_convolution(model: torch.nn.Module, channels: int) -> None:
    from torch import nn

    found = next(((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if found is None or found[1].groups != 1:
        raise ValueError(f"{type(model).__name__} takes images of 3 channels only, got {channels}")
    path, old = found
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        bias=old.bias is not None,
    )
    model.set_submodule(path, new)
