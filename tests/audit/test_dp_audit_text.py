"""A DP audit of a language model, end to end: secrets of random tokens are told without DP, and kept with it."""

import csv

import pytest

import main

CONFIG = """\
run: {{log_dir: {log_dir}, random_seed: 3}}
data: {{dataset: docstrings, num_records: 300}}
train:
  model_name: {{name: gpt2_tiny, width: 32, layers: 1, heads: 2, vocab_size: 512}}
  epochs: 3
  learning_rate: 0.003
  batch_size: 16
audit: {{algorithm: [LOSS]}}
dp_audit:
  canary_dataset: random_tokens
  canary_size: 100
  training_alg: [dp, nondp]
  dp_sgd: {{noise_multiplier: 1.0, epochs: 3, batch_size: 32, learning_rate: 0.05}}
"""


@pytest.mark.slow
def test_secrets_are_told_without_dp_and_kept_with_it(tmp_path):
    file = tmp_path / "text.yaml"
    file.write_text(CONFIG.format(log_dir=tmp_path / "run"))
    assert main.main(["--cf", str(file)]) == 0
    with (tmp_path / "run" / "report" / "dp_audit" / "dp_audit.csv").open() as table:
        rows = {row["training"]: row for row in csv.DictReader(table)}
    assert float(rows["without DP"]["epsilon_lower_bound"]) > 1
    assert float(rows["DP-SGD"]["epsilon_lower_bound"]) < 1
    assert 3 < float(rows["DP-SGD"]["epsilon_accounted"]) < 6
