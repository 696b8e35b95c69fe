"""How far is a record from the nearest one that the model labels otherwise? Asked of predicted labels alone.

HopSkipJumpAttack (Chen et al. 2020, https://arxiv.org/abs/1904.02144, Alg. 2, untargeted, l2), as Choquette-Choo et
al. (2021, https://arxiv.org/abs/2007.14321) use it. All records advance together, each within a budget of its own;
in place of noise, each starts from the nearest known record that is labelled otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from trainers.label_only import HardLabels
from trainers.resident import Resident

HALVINGS = 10  # of a step that leads out of the other label's region
NEAREST = 1 << 22  # distances held at once while the nearest known record is looked for


@dataclass(frozen=True)
class Space:
    """The units that distances are measured in, and what values a record may have.

    scale: of a record's values (d,), in the units that they are stored in: a distance of 1 is that far along one
        value. Values of scale 0 are never changed.
    box: least and largest value in stored units; None if there is none.
    """

    scale: torch.Tensor
    box: tuple[float, float] | None = None


def boundary_distances(
    ask: HardLabels,
    data: Resident,
    known: torch.Tensor,
    space: Space,
    *,
    queries: int,
    directions: int,
    draw: Callable[[int], np.random.Generator],
) -> tuple[np.ndarray, np.ndarray]:
    """(distance, labels asked for), of each record: float32 (N,), int64 (N,).

    0 for a record that the model labels wrongly. Where no known record is labelled otherwise than x, nothing is
    known of its boundary but the farthest of them: the distance to that one.

    known: records (K, ...) in stored units, labelled once each; these K labels are not in the records' counts.
    queries: labels asked for about one record, at most.
    directions: of the first estimate of a gradient; of the t-th it is that times sqrt(t) (Chen et al., Sec. IV-B).
    draw: of an estimate's number, the generator of its directions. All records share them, so that what is found
        of one depends on nothing but the record and the model.
    """
    x, shape = data.x.flatten(1).float(), data.x.shape[1:]
    moves = space.scale > 0
    scale = torch.where(moves, space.scale, 1.0).to(x)
    found = torch.zeros(len(x), device=x.device)
    used = torch.ones(len(x), dtype=torch.int64, device=x.device)
    right = (ask(data.x) == data.y).nonzero().squeeze(1)
    others = ask(known)
    start, found[right] = _nearest(x[right] / scale, data.y[right], known.flatten(1).float() / scale, others, moves)
    hunted = right[start >= 0]
    if len(hunted):
        hunt = _Hunt(ask, x[hunted] / scale, data.y[hunted], scale, moves, space.box, shape, queries)
        found[hunted] = hunt(known.flatten(1)[start[start >= 0]].float() / scale, directions, draw)
        used[hunted] += hunt.used
    return found.cpu().numpy(), used.cpu().numpy()


def _nearest(
    z: torch.Tensor, y: torch.Tensor, known: torch.Tensor, labels: torch.Tensor, moves: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each record, the nearest known one that is labelled otherwise (-1: none), or else the farthest distance."""
    nearest = torch.full((len(z),), -1, device=z.device)
    farthest = torch.zeros(len(z), device=z.device)
    step = max(1, NEAREST // max(len(known), 1))
    for part in (slice(i, i + step) for i in range(0, len(z) if len(known) else 0, step)):
        away = torch.cdist(z[part], known)
        farthest[part] = away.max(1).values
        away[labels == y[part, None]] = torch.inf
        least, place = away.min(1)
        nearest[part] = torch.where(least.isfinite(), place, -1)
    return nearest, farthest


class _Hunt:
    """The search for the boundary near records z (n, d), in units of the space. `used`: labels asked about each.

    Between two steps `at` (n, d) is the nearest record known to be labelled otherwise, `distance` (n,) how near.
    """

    def __init__(
        self,
        ask: HardLabels,
        z: torch.Tensor,
        y: torch.Tensor,
        scale: torch.Tensor,
        moves: torch.Tensor,
        box: tuple[float, float] | None,
        shape: torch.Size,
        queries: int,
    ) -> None:
        self._ask, self.z, self.y, self.shape, self.scale, self.moves = ask, z, y, shape, scale, moves
        self.box = None if box is None else (box[0] / scale, box[1] / scale)
        self.left = torch.full((len(z),), queries - 1, device=z.device)  # one was spent on its own label
        self.queries = queries
        dimensions = int(moves.sum())
        self.tolerance = max(dimensions, 2) ** -1.5  # theta of Chen et al., in parts of the line that is searched
        self.bisections = math.ceil(math.log2(1 / self.tolerance))
        self.reach = 1 / max(dimensions, 2)  # delta of Chen et al., in parts of the distance

    @property
    def used(self) -> torch.Tensor:
        return self.queries - 1 - self.left

    def __call__(
        self, start: torch.Tensor, directions: int, draw: Callable[[int], np.random.Generator]
    ) -> torch.Tensor:
        everyone = torch.arange(len(self.z), device=self.z.device)
        start = torch.where(self.moves, start, self.z)
        self.at, self.distance = start.clone(), (start - self.z).norm(dim=1)
        crossed = self._crosses(everyone, start)  # where values that never change were the difference, it may not
        self._bisect(everyone[crossed], start[crossed])
        active, t = everyone[crossed], 0
        while True:
            t += 1
            count = int(directions * math.sqrt(t))
            active = active[self.left[active] >= count + 1 + self.bisections]
            if not len(active):
                return self.distance
            self._step(active, self._gradient(active, count, draw(t)), t)

    def _crosses(self, who: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Whether the model labels these (B, d) otherwise than the records `who`; one label of each one's budget."""
        self.left[who] -= 1
        return self._labels(z) != self.y[who]

    def _labels(self, z: torch.Tensor) -> torch.Tensor:
        return self._ask((z * self.scale).view(-1, *self.shape))

    def _inside(self, z: torch.Tensor) -> torch.Tensor:
        return z if self.box is None else torch.minimum(torch.maximum(z, self.box[0]), self.box[1])

    def _bisect(self, who: torch.Tensor, beyond: torch.Tensor) -> None:
        """Walk from `beyond` the boundary towards the record, and keep what is nearer than anything found before."""
        z = self.z[who]
        low, high = torch.zeros(len(who), 1, device=z.device), torch.ones(len(who), 1, device=z.device)
        for _ in range(self.bisections):
            middle = (low + high) / 2
            crossed = self._crosses(who, z + middle * (beyond - z))[:, None]
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
        at = z + high * (beyond - z)
        distance = (at - z).norm(dim=1)
        nearer = distance < self.distance[who]
        self.at[who[nearer]], self.distance[who[nearer]] = at[nearer], distance[nearer]

    def _gradient(self, who: torch.Tensor, count: int, draw: np.random.Generator) -> torch.Tensor:
        """Directions (n, d) in which the other label gets likelier, of length 1 (Chen et al., eq. 16)."""
        towards = torch.tensor(draw.standard_normal((count, self.z.shape[1]), dtype=np.float32)).to(self.z)
        towards = torch.where(self.moves, towards, 0.0)
        towards = towards / towards.norm(dim=1, keepdim=True)
        found = torch.empty(len(who), self.z.shape[1], device=self.z.device)
        step = max(1, self._ask.batch_size // count)
        for part in (slice(i, i + step) for i in range(0, len(who), step)):
            rows = who[part]
            reach = (self.distance[rows] * self.reach).clamp_min(1e-12)[:, None, None]
            at = self.at[rows][:, None]
            tried = self._inside(at + reach * towards)
            crossed = self._labels(tried.flatten(0, 1)).view(len(rows), count) != self.y[rows, None]
            sign = 2.0 * crossed - 1.0
            sign = torch.where(crossed.all(1) | ~crossed.any(1), sign.T, (sign - sign.mean(1, keepdim=True)).T).T
            found[part] = (sign[:, :, None] * ((tried - at) / reach)).sum(1)
        self.left[who] -= count
        return found / found.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def _step(self, who: torch.Tensor, direction: torch.Tensor, t: int) -> None:
        """Along the gradient as far as the other label reaches, halving; then back to the boundary."""
        size = (self.distance[who] / math.sqrt(t))[:, None]
        beyond, done = self.at[who].clone(), torch.zeros(len(who), dtype=torch.bool, device=self.z.device)
        for _ in range(HALVINGS):
            asked = (~done & (self.left[who] > self.bisections)).nonzero().squeeze(1)
            if not len(asked):
                break
            there = self._inside(self.at[who[asked]] + size[asked] * direction[asked])
            crossed = self._crosses(who[asked], there)
            beyond[asked[crossed]] = there[crossed]
            done[asked[crossed]] = True
            size[asked] /= 2
        self._bisect(who[done], beyond[done])
