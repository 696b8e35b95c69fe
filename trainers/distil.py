"""A student learns what a model answers about the population; how records fare under way is their loss trajectory.

Liu et al. 2022, Membership Inference Attacks by Exploiting Loss Trajectory, https://arxiv.org/abs/2208.14933, Sec. 4.
Imports torch: import it inside a function.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch.nn import functional as F

from core.types import LOG_ODDS
from trainers.evaluate import logits, signals
from trainers.loop import seeded
from trainers.resident import Resident
from trainers.schedule import batches


def trajectory(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    population: Resident,
    points: Resident,
    draw: np.random.Generator,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    ask_batch_size: int,
) -> Float[Array, "E N"]:
    """Log-odds of the points' labels under the student after each epoch, float32.

    The student minimises the Kullback-Leibler divergence from the teacher's probabilities on the population, by AdamW;
    the teacher is asked about the population once, and never about the points.
    """
    taught = torch.cat([z[0] for _, z in logits(teacher, population, batch_size=ask_batch_size)]).log_softmax(1)
    layout = torch.channels_last if population.is_image and population.device.type != "mps" else torch.contiguous_format
    student.to(device=population.device, memory_format=layout)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)
    found = []
    with seeded(draw, population.device):
        for _ in range(epochs):
            student.to(memory_format=layout).train()
            order = torch.as_tensor(draw.permutation(len(population)), device=population.device)
            for batch in batches(len(order), batch_size):
                index = order[batch]
                z = student(population.batch(index)).float().log_softmax(1)
                loss = F.kl_div(z, taught[index], reduction="batchmean", log_target=True)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
            found.append(signals(student, points, wanted=[LOG_ODDS], batch_size=ask_batch_size)[0, 0])
    return np.stack(found)
