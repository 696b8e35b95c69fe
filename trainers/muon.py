"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

In the variant of airbench94_muon: each filter bank is brought to one length before every step, so its learning
rate is a turn, not a growth, and weight decay has nothing to do. Imports torch: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# The quintic a s + b s^3 + c s^5 with the steepest start that stays within about (0.7, 1.2) on (0, 1] once it is there.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """U f(S / |S|) V' of `matrix` = U S V', f the quintic applied `steps` times: singular values near one.

    Not the nearest orthogonal matrix, on purpose: three steps lift small singular values without making
    them equal, at the price of a few products of matrices. In the precision of `matrix`.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)  # Frobenius norm 1: no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, made orthogonal, on weights of fixed length. For convolutions: (out, …) is a matrix.

    dtype: of the products in `newton_schulz`; the weights and their momentum stay in float32.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step along every gradient that is there."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"].mul_(group["momentum"]).add_(p.grad)
                ahead = p.grad.add(velocity, alpha=group["momentum"])
                turn = newton_schulz(ahead.reshape(len(p), -1).to(self.dtype)).to(p.dtype).view(p.shape)
                p.mul_(len(p) ** 0.5 / p.norm()).sub_(turn * group["lr"])
