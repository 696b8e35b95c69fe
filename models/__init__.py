"""Architectures by name. Importing this package fills the registry and does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError
from core.registry import MODELS
from models.alexnet import alexnet as alexnet
from models.cnn import cnn as cnn
from models.language import gpt2 as gpt2
from models.language import gpt2_tiny as gpt2_tiny
from models.language import hugging_face as hugging_face
from models.libraries import timm as timm
from models.libraries import torchvision as torchvision
from models.mlp import mlp as mlp
from models.resnet import resnet18 as resnet18
from models.speedyresnet import speedyresnet as speedyresnet
from models.vgg import vgg16 as vgg16
from models.wide_resnet import wide_resnet as wide_resnet

if TYPE_CHECKING:
    import torch


def build(
    name: str,
    settings: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    rng: np.random.Generator,
    peft: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """A freshly initialised model on the CPU: a function of its name, settings, shapes and `rng` alone.

    With `peft`, fresh adapters on a base that all models of the process share: see models/adapters.py.

    Model builders draw their weights from torch's global generator. This is the one place where it is
    seeded, from `rng`, and it is put back as it was. UserError where no such model can be built.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        if peft is not None:
            from models.adapters import adapted
            from models.language import shared_base

            return adapted(shared_base(name, settings, input_shape, num_classes), peft)
        return _construct(name, settings, input_shape, num_classes)


def check(name: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int) -> None:
    """UserError now, rather than after hours of training, if the model does not fit such records.

    Builds the model and runs it on two records on the meta device: shapes only, no memory, no arithmetic.
    """
    import torch

    if MODELS.find(name) and MODELS.fact(name, "needs") == "text":
        raise UserError(f"model {name} needs texts, got records of shape {input_shape}: use another train.model_name")
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        model = _construct(name, settings, input_shape, num_classes)
        try:
            logits = model(torch.zeros(2, *input_shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"model {name} cannot run on records of shape {input_shape}: {error}. Use another train.model_name"
            ) from error
    if tuple(getattr(logits, "shape", ())) != (2, num_classes):
        raise UserError(f"model {name} does not give one logit per class for records of shape {input_shape}")


def check_text(
    name: str, settings: Mapping[str, Any], length: int, vocabulary: int, peft: Mapping[str, Any] | None
) -> None:
    """UserError now if the model, with adapters if there are to be, cannot take texts of `length` tokens."""
    import torch

    from models.language import shared_base

    if MODELS.fact(name, "needs") != "text":
        known = ", ".join(model for model in MODELS if MODELS.fact(model, "needs") == "text")
        raise UserError(f"model {name} takes no texts: use one of {known}")
    base = shared_base(name, settings, (length,), vocabulary)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        logits = base(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits
        if logits.ndim != 3 or logits.shape[2] < vocabulary:
            raise UserError(f"model {name} does not give one logit per token of the vocabulary")
        if peft is not None:
            from models.adapters import adapted

            adapted(base, peft)


def _construct(
    name: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> torch.nn.Module:
    known = MODELS.find(name)
    if known is None:
        raise UserError(MODELS.unknown(name))
    if num_classes < 2:
        raise UserError(f"model {name}: a classifier needs at least 2 classes, the dataset has {num_classes}")
    try:
        return MODELS[known](input_shape, num_classes, *MODELS.rest(name), **settings)
    except ValueError as error:
        raise UserError(str(error)) from error
