"""A fitted estimator behind the interface of a network: logits are the logarithms of its smoothed probabilities."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import nn

from core.errors import UserError

TINY = 1e-12  # smoothing of probabilities that are no shares of votes: log-odds stay within about +- 28


class Estimator(nn.Module):
    """What it has answered once, it answers again without being fitted; of anything else it asks the fitted estimator.

    Its state is its answers, by a digest of the record (blake2b, 128 bits), and what it takes to fit it again.
    """

    def __init__(self, estimator: Any, settings: dict[str, Any], num_classes: int) -> None:
        super().__init__()
        self.make, self.settings, self.num_classes = estimator, settings, num_classes
        self.fitted: Any = None
        self.random_state, self.smoothing = -1, 0.0
        self.answers: dict[bytes, Float[Array, " C"]] = {}
        self.training_set: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None  # to fit it again

    def fit(self, x: torch.Tensor, y: torch.Tensor, random_state: int, smoothing: float | Literal["auto"]) -> list[str]:
        """Fit to these records as a network would see them. Returns what the estimator warns of."""
        self.random_state = random_state
        said = self._fit(x, y)
        self.smoothing = smoothing_of(self.fitted, self.num_classes) if smoothing == "auto" else smoothing
        return said

    def _fit(self, x: torch.Tensor, y: torch.Tensor) -> list[str]:
        from threadpoolctl import threadpool_limits

        estimator = self.make(**self.settings)
        fixed = {"random_state": self.random_state}
        if not self.make.__module__.startswith("sklearn."):
            fixed["n_jobs"] = 1  # scikit-learn's own default, and no others'
        known = estimator.get_params(deep=False)
        estimator.set_params(**{key: value for key, value in fixed.items() if key in known})
        # Some libraries insist on classes 0 .. k - 1 without gaps.
        self.classes, labels = np.unique(y.cpu().numpy(), return_inverse=True)
        if len(self.classes) < 2:
            raise UserError(f"{self.make.__name__} needs records of at least 2 classes to fit to")
        try:
            with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
                warnings.simplefilter("always")
                self.fitted = estimator.fit(_rows(x), labels)
        except ValueError as error:
            raise UserError(f"{self.make.__name__} cannot be fitted: {error}") from None
        return list(dict.fromkeys(str(warning.message).partition("\n")[0] for warning in caught))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, float32 (B, C)."""
        if x.is_meta:
            return x.new_zeros(len(x), self.num_classes)
        rows = _rows(x)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        if new := [place for place, key in enumerate(keys) if key not in self.answers]:
            answers = self._asked(rows[new])
            self.answers |= {keys[place]: answer for place, answer in zip(new, answers, strict=True)}
        return torch.tensor(np.stack([self.answers[key] for key in keys])).to(x.device)

    def _asked(self, rows: Float[Array, "n d"]) -> Float[Array, "n C"]:
        if self.fitted is None:
            self._fit_again()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of features, which arrays do not have
            given = self.fitted.predict_proba(rows)
        p = np.zeros((len(rows), self.num_classes))
        p[:, self.classes] = given
        with np.errstate(divide="ignore"):
            return np.log((1 - self.smoothing) * p + self.smoothing / self.num_classes).astype(np.float32)

    def _fit_again(self) -> None:
        """Fit as before, and compare answers about the training records with those that were kept."""
        if self.training_set is None:
            raise UserError(f"{self.make.__name__}: a new question needs the training records, which are not here")
        x, y = self.training_set()
        self._fit(x, y)
        kept, self.answers = self.answers, {}
        again = self.forward(x[:100]).numpy()
        self.answers |= kept
        before = self.forward(x[:100]).numpy()
        if not np.allclose(again, before, rtol=1e-4, atol=1e-5):
            raise UserError(
                f"{self.make.__name__}, fitted again, gives other answers than those that were kept: "
                "another version of its library? Use that one, or another run.log_dir"
            )

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The answers, and what it takes to fit it again: no weights, and nothing that could run."""
        keys = b"".join(self.answers)
        return {
            "records": torch.frombuffer(bytearray(keys), dtype=torch.uint8).reshape(-1, 16)
            if keys
            else torch.empty(0, 16, dtype=torch.uint8),
            "answers": torch.tensor(np.array(list(self.answers.values()), np.float32).reshape(-1, self.num_classes)),
            "random_state": torch.tensor(self.random_state),
            "smoothing": torch.tensor(self.smoothing, dtype=torch.float64),
        }

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:  # type: ignore[override]
        """(missing, unexpected) names, as of a network."""
        expected = set(self.state_dict())
        missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
        if not missing and not unexpected:
            keys, answers = state["records"].numpy(), state["answers"].numpy()
            if keys.shape != (len(answers), 16) or answers.shape[1:] != (self.num_classes,):
                return ["answers"], []
            self.answers = {key.tobytes(): answer for key, answer in zip(keys, answers, strict=True)}
            self.random_state, self.smoothing = int(state["random_state"]), float(state["smoothing"])
        return missing, unexpected


def smoothing_of(estimator: Any, num_classes: int) -> float:
    """How far probabilities are drawn towards 1 / C: Laplace's rule where they are shares of T votes, else hardly.

    (T p + 1) / (T + C) = (1 - e) p + e / C with e = C / (T + C), one vote more for each class. A forest has T trees,
    a nearest-neighbour classifier T neighbours, a single tree one vote.
    """
    module = type(estimator).__module__
    votes = None
    if module.startswith(("sklearn.ensemble._forest", "sklearn.ensemble._bagging")):
        votes = len(estimator.estimators_)
    elif module.startswith("sklearn.neighbors"):
        votes = getattr(estimator, "n_neighbors", None)
    elif module.startswith("sklearn.tree"):
        votes = 1
    return TINY if votes is None else num_classes / (votes + num_classes)


def _rows(x: torch.Tensor) -> Float[Array, "n d"]:
    return np.ascontiguousarray(x.detach().reshape(len(x), -1).float().cpu().numpy())
