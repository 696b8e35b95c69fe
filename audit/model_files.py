"""The weights of models as files: a model_<id>.safetensors each, or a folder as PEFT keeps adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.session import Session
from core import rundir
from core.errors import UserError

if TYPE_CHECKING:
    import torch


def peft_of(session: Session, model: int | None = None) -> Any:
    """The settings of the adapters that this model, or whatever is trained, consists of; None of whole models."""
    if model is not None and (brought := session.brought_from(model)):
        return brought.peft
    trainer = session.config.trainer
    return trainer.settings.get("peft") if trainer else None


def weights_path(session: Session, model: int) -> Path:
    """The file of a model's weights; of a model with adapters only these, its base is kept nowhere."""
    folder = session.folder / "models"
    return folder / (
        f"model_{model}/adapter_model.safetensors" if peft_of(session, model) else f"model_{model}.safetensors"
    )


def files_of(session: Session, model: int) -> list[Path]:
    """All files of a finished model: what `training.load_model` reads."""
    path = weights_path(session, model)
    config = [path.parent / "adapter_config.json"] if peft_of(session) else []
    return [*config, path, rundir.stamp_of(path)]


def build(session: Session, model: int | str) -> torch.nn.Module:
    """Model number `model`, or one of that name, before its training, on the CPU."""
    import models

    config, data = session.config, session.data
    rng = session.stream("init", model)
    shape, classes = data.input_shape, data.num_classes
    peft = peft_of(session, model if isinstance(model, int) else None)
    return models.build(config.model.name, config.model.settings, shape, classes, rng, peft)


def to_files(network: torch.nn.Module, path: Path) -> tuple[dict[str, bytes], str]:
    """The files of a model whose weights are to be at `path`, by name; and a digest of all of them."""
    if _has_adapters(network):
        from models import adapters

        files = adapters.files(network)  # ty: ignore
        assert path.name in files
    else:
        from safetensors.torch import save

        files = {path.name: save(_once(network))}
    return files, _digest(files)


def from_files(path: Path, network: torch.nn.Module, sha256: str) -> None:
    """Fill `network` with what was written at `path`. UserError if it is not what was written there."""
    names = [path.name, *(["adapter_config.json"] if _has_adapters(network) else [])]
    try:
        files = {name: (path.parent / name).read_bytes() for name in names}
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): restore it, or delete its stamp"
        ) from None
    if _digest(files) != sha256:
        raise UserError(f"{path} was changed after it was written: restore it, or delete it to train it again")
    if _has_adapters(network):
        from models import adapters

        adapters.fill(network, files[path.name])  # ty: ignore
        return
    from safetensors.torch import load

    missing, unexpected = network.load_state_dict(load(files[path.name]), strict=False)
    if unexpected or set(missing) & set(_once(network)):
        raise UserError(f"{path} is of another model: restore it, or delete it to train it again")


def _digest(files: dict[str, bytes]) -> str:
    return rundir.digest(*(files[name] for name in sorted(files)))


def _has_adapters(network: torch.nn.Module) -> bool:
    return hasattr(network, "peft_config")


def _once(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor under the first of its names: a tied weight (a language model's first and last) has several."""
    kept: dict[Any, tuple[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict().items():
        kept.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, (name, tensor))
    return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.values()}
