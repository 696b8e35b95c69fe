"""The whole pipeline against a script written by hand: plain PyTorch, plain loops, nothing of ours."""

import numpy as np
import pytest

from audit import pipeline
from audit.session import device_of, make_reproducible
from audit.signals import compute_missing
from audit.training import model_rows, train_missing
from core.config import load

MODELS = 18  # nine pairs; each model is attacked with the eight pairs that are not its own
CONFIG = """\
run: {{log_dir: {log_dir}, num_experiments: 18}}
data: {{dataset: digits}}
train: {{model_name: {{name: mlp, hidden: [64]}}, epochs: 25, batch_size: 32, learning_rate: 0.1, weight_decay: 0}}
audit: {{algorithm: [LOSS, {{name: LiRA, variance: global}}, {{name: RMIA, a: 0.3}}], num_ref_models: 8}}
"""


def by_hand() -> tuple[dict[str, np.ndarray], float]:
    """AUC of LOSS, LiRA and RMIA on each of 18 models, and their mean accuracy on records nobody trained on."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = torch.tensor(x[order] / 8 - 1, dtype=torch.float32), torch.tensor(y[order])
    n, total = 1348, len(x)
    member = np.zeros((MODELS, n), dtype=bool)
    confidence, accuracy = np.zeros((MODELS, total)), []
    for pair in range(MODELS // 2):
        half = rng.permutation(n)[: n // 2]
        member[2 * pair, half] = True
        member[2 * pair + 1] = ~member[2 * pair]
    for m in range(MODELS):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
        epochs, train = 25, torch.tensor(np.flatnonzero(member[m]))
        steps = epochs * -(-len(train) // 32)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: (1 + np.cos(np.pi * s / steps)) / 2)  # noqa: B023
        for _ in range(epochs):
            for batch in train[torch.randperm(len(train))].split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            p = torch.softmax(net(x).double(), dim=1)
        confidence[m] = p[torch.arange(total), y]
        accuracy.append(float((p.argmax(1) == y)[n:].float().mean()))
    phi = np.log(confidence / (1 - confidence))
    aucs = {"LOSS": [], "LiRA": [], "RMIA": []}
    for m in range(MODELS):
        others = [r for r in range(MODELS) if r // 2 != m // 2]
        means, residuals = {}, {True: [], False: []}
        for i in range(n):
            for inside in (True, False):
                values = np.array([phi[r, i] for r in others if member[r, i] == inside])
                means[i, inside] = values.mean()
                residuals[inside].append(values.var(ddof=1))
        lira, ratio_x = [], []
        for i in range(n):
            log_density = {
                inside: -0.5 * (phi[m, i] - means[i, inside]) ** 2 / np.mean(residuals[inside])
                - 0.5 * np.log(np.mean(residuals[inside]))
                for inside in (True, False)
            }
            lira.append(log_density[True] - log_density[False])
            out = np.mean([confidence[r, i] for r in others if not member[r, i]])
            ratio_x.append(confidence[m, i] / ((1.3 * out + 0.7) / 2))
        aucs["LOSS"].append(roc_auc_score(member[m], phi[m, :n]))
        aucs["LiRA"].append(roc_auc_score(member[m], lira))
        aucs["RMIA"].append(roc_auc_score(member[m], ratio_x))  # on one model, RMIA ranks as its ratio does
    return {name: np.array(values) for name, values in aucs.items()}, float(np.mean(accuracy))


@pytest.mark.slow
def test_attacks_and_accuracy_are_those_of_a_script_by_hand(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(log_dir=tmp_path / "run"))
    config = load(path)
    make_reproducible(1)
    session = pipeline.prepare(config)
    train_missing(session, device_of(config, "train"))
    compute_missing(session, device_of(config, "audit"))
    results = [pipeline.audit_target(session, target) for target in range(MODELS)]
    ours = {
        attack.attack: np.array([target.attacks[a].summary.auc.value for target in results])
        for a, attack in enumerate(results[0].attacks)
    }
    theirs, accuracy = by_hand()
    for name in theirs:
        error = np.sqrt((ours[name].var(ddof=1) + theirs[name].var(ddof=1)) / MODELS)
        assert abs(ours[name].mean() - theirs[name].mean()) < 4 * error + 0.005, name
    assert abs(np.mean([row["test_acc"] for row in model_rows(session)]) - accuracy) < 0.02
    assert ours["LOSS"].mean() + 0.02 < min(ours["LiRA"].mean(), ours["RMIA"].mean())
    assert ours["LOSS"].mean() > 0.5
