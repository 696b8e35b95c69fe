"""Language models in folders, as transformers and PEFT save them: whole models, shards, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import Config
from core.errors import UserError
from core.loading import read_bytes, read_json
from core.rundir import digest

if TYPE_CHECKING:
    import torch

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Left out of an adapter's config: how its weights came about, and names of code to import. Not needed to read them.
BESIDE = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "init_lora_weights"),
    *("loftq_config", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version", "revision"),
    *("runtime_config", "task_type"),
}
# What a config says beside how a model computes: who wrote it, and what training and generation used.
ASIDE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "model_type")


def is_adapter(path: Path) -> bool:
    return path.is_dir() and (path / ADAPTER).exists()


def check(path: Path) -> None:
    """UserError if a folder holds neither a model nor adapters."""
    if is_adapter(path):
        if not (path / ADAPTER_WEIGHTS).exists():
            raise UserError(f"{path} has an {ADAPTER} and no {ADAPTER_WEIGHTS}: save the adapter with save_pretrained")
    elif not (path / "config.json").exists():
        raise UserError(f"{path} is no model: a folder should hold config.json and model.safetensors, or {ADAPTER}")


def own_folder(name: str | dict[str, Any] | None) -> Path | None:
    """The folder of a language model that is to be audited as it is; one of the hub is in its cache, or fetched there.

    UserError if it is nowhere.
    """
    written = str(name if isinstance(name, str) else (name or {}).get("name", ""))
    kind, _, source = written.partition(":")
    if kind not in ("hf", "gpt2"):
        if is_adapter(Path(written)) or (Path(written) / "config.json").exists():
            raise UserError(f"{written} is a folder: name it hf:{written}")
        return None
    if source and (path := Path(source).expanduser()).is_dir():
        return path
    from huggingface_hub import snapshot_download

    from models.pretrained import base

    base(source or kind)
    return Path(snapshot_download(source or kind, local_files_only=True))


def named(config: Config, name: str | dict[str, Any] | None, weights: Any) -> str | dict[str, Any] | None:
    """The architecture as it is written, or as a folder of weights says."""
    if name is not None or config.model is not None or not isinstance(weights, Path) or not weights.is_dir():
        return name
    base = base_of(weights) if is_adapter(weights) else str(weights)
    if not base:
        raise config.error("model.name", f"missing: {weights} does not say whose adapters they are: hf:<folder of it>")
    return f"hf:{base}"


def base_of(path: Path) -> str | None:
    """The model that adapters were trained on, as they say."""
    found = _config(path).get("base_model_name_or_path")
    return found if isinstance(found, str) else None


def _config(path: Path) -> Mapping[str, Any]:
    found = read_json(path / ADAPTER)
    if not isinstance(found, dict):
        raise UserError(f"{path / ADAPTER} is no config of adapters: it should be an object such as PEFT writes")
    return found


def peft_of(path: Path) -> dict[str, Any]:
    """The settings of the adapters in a folder, as `train.peft` has them. UserError for those that are read unlike."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    found = _config(path)
    kind = str(found.get("peft_type"))
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{path / ADAPTER}: adapters of type {kind!r} are not known to PEFT")
    known = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    return {"type": kind.lower(), **{key: value for key, value in found.items() if key in known and key not in BESIDE}}


def sha256(path: Path) -> str:
    """Of a file, or of all that makes the model in a folder."""
    if not path.is_dir():
        return digest(read_bytes(path))
    names = (ADAPTER, ADAPTER_WEIGHTS) if is_adapter(path) else ("config.json", "*.safetensors", "*.bin")
    files = sorted({file for name in names for file in path.glob(name)})
    return digest([file.name for file in files], *[digest(read_bytes(file)) for file in files])


def fill(network: torch.nn.Module, path: Path, name: str) -> None:
    """Give `network`, built as `name`, the weights of the folder. UserError where they are of another model."""
    if is_adapter(path):
        from models import adapters

        try:
            adapters.fill(network, read_bytes(path / ADAPTER_WEIGHTS))  # ty: ignore
        except Exception as error:  # safetensors raises whatever damaged files make it raise
            raise UserError(f"{path / ADAPTER_WEIGHTS} does not fit {name}: {error}") from None
        return
    from audit.state_dicts import fit
    from models.pretrained import base, config_of

    what = f"{path} ({name})"
    _same_architecture(config_of(str(path)).to_dict(), network.config.to_dict(), what)  # ty: ignore
    fit(network, base(str(path)).state_dict(), what)


def _same_architecture(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
    ours = lambda key: key not in ASIDE and "drop" not in key and not key.endswith("token_id")  # noqa: E731
    if one.get("model_type") != other.get("model_type"):
        raise UserError(f"{what} is a {one.get('model_type')}, and is to be read as a {other['model_type']}")
    if unlike := [key for key in one if key in other and ours(key) and one[key] != other[key]]:
        said = ", ".join(f"{key} {one[key]} instead of {other[key]}" for key in unlike[:3])
        raise UserError(f"{what} computes in another way: its config.json has {said}")
