"""State dicts from files of others, in the four formats there are; none of them can run code here.

.safetensors; .pt and .pth as torch.save writes them (tensors only); .pkl as the original tool writes it, the plain
pickle of a state dict. Tensors of any device arrive on the CPU.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.loading import check_zip, read_bytes, unpickle

if TYPE_CHECKING:
    import torch

WRAPPERS = ("module.", "_orig_mod.", "_module.", "net_ema.")  # of DataParallel, torch.compile, Opacus, the original
SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl")
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before its files were zip archives
INSIDE = ("state_dict", "model_state_dict", "model", "weights")  # where checkpoints keep the weights among other things


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file by parameter name, on the CPU, without the prefixes that wrappers put before the names.

    Raises UserError with the file's name: another format, a damaged file, a pickle that wants more than tensors and
    dicts (with the symbol it wants), something that is no state dict, weights that are not finite.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
    content = read_bytes(path)
    if suffix == ".safetensors":
        return unwrapped(_state_dict(_safetensors(content, path), path))
    if zipfile.is_zipfile(path):
        check_zip(path)
    elif not content.startswith(LEGACY):  # a plain pickle, whatever it is called
        return unwrapped(_state_dict(_pickle(content, path), path))
    return unwrapped(_state_dict(_torch(content, path), path))


def _safetensors(content: bytes, path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({_brief(error)})") from None


def _torch(content: bytes, path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load of a damaged file can raise anything
        if wanted := re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class)[^\w]*|type) ([\w.]+\.[\w.]+)", str(error)):
            raise UserError(
                f"{path} is refused: it asks for {wanted[1]}, and weights need tensors and dicts only. Where you made "
                "it, save the weights alone: torch.save(model.state_dict(), file)"
            ) from None
        raise UserError(f"{path} cannot be read by torch ({_brief(error)})") from None


def _pickle(content: bytes, path: Path) -> Any:
    import torch

    def load(inner: Any) -> Any:
        if not isinstance(inner, bytes) or not inner.startswith(LEGACY):
            raise UserError(f"{path} is refused: a tensor in it is not as torch pickles it")
        return _torch(inner, path)

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        """As torch._utils._rebuild_tensor_v2, without the hooks that a pickle could hand over."""
        if not isinstance(storage, torch.storage.TypedStorage):
            raise UserError(f"{path} is refused: a tensor in it is made of something else than numbers")
        numbers = storage._untyped_storage.nbytes() // storage.dtype.itemsize
        if offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) >= max(numbers, 1):
            raise UserError(f"{path} is refused: a tensor of shape {tuple(size)} reaches beyond its numbers")
        empty = torch.empty(0, dtype=storage.dtype)
        return empty.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))

    def parameter(data: Any, *_: Any) -> Any:
        return data

    admitted: Mapping[str, Callable[..., Any]] = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_parameter": parameter,
        "torch.storage._load_from_bytes": load,
    }
    return unpickle(content, admitted, str(path))


def _state_dict(value: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    for _ in range(2):
        if isinstance(value, Mapping) and not any(isinstance(tensor, torch.Tensor) for tensor in value.values()):
            value = next((value[key] for key in INSIDE if isinstance(value.get(key), Mapping)), value)
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path} holds {_kind(value)}, no state dict: save model.state_dict()")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {str(name)[:80]!r} is {_kind(tensor)}: a state dict holds tensors by name")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(f"{path}: {name} is sparse or quantised, which is not supported")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} claims shape {tuple(tensor.shape)}, and has fewer numbers than that")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has NaN or infinite weights: this model did not train")
    return {name: tensor.detach() for name, tensor in value.items()}


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors under the names they have without DataParallel, torch.compile or Opacus around the model."""
    names = {name: name for name in weights}
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in names.values())), None):
        names = {name: inner.removeprefix(wrapper) for name, inner in names.items()}
    return {names[name]: tensor for name, tensor in weights.items()}


def fit(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Load the weights into the network. Raises UserError with every name and shape that does not agree."""
    import torch

    wanted = network.state_dict()
    there = {_address(tensor) for name, tensor in wanted.items() if name in weights}  # a tied weight has several names
    spare = [name for name, tensor in wanted.items() if name not in weights and _is_spare(name, tensor, there)]
    missing = [name for name in wanted if name not in weights and name not in spare]
    unexpected = [name for name in weights if name not in wanted]
    other = [
        f"{name} {tuple(weights[name].shape)} where {tuple(wanted[name].shape)} is needed"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    complaints = [("misses", missing), ("has beyond it", unexpected), ("has in other shapes", other)]
    if found := [f"{word} {_few(names)}" for word, names in complaints if names]:
        raise UserError(f"{what} does not fit the architecture: it {'; it '.join(found)}")
    with torch.no_grad():
        network.load_state_dict(weights, strict=False)


def _is_spare(name: str, tensor: torch.Tensor, there: set[tuple[int, tuple[int, ...]]]) -> bool:
    """Whether a file may leave it out: a counter that no answer depends on, or a tensor that has another name, too."""
    return name.endswith("num_batches_tracked") or (tensor.numel() > 0 and _address(tensor) in there)


def _address(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
