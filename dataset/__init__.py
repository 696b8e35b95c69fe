"""Datasets: functions `(data_dir, seed, *, settings) -> AuditData`. Importing this package fills `DATASETS`.

One line per family, so that a dataset can be found with grep. Nothing heavy is imported before it is asked for.
"""

from dataset import bundled, cifar, original, purchase_texas, synthetic, tables, text

__all__ = ["bundled", "cifar", "original", "purchase_texas", "synthetic", "tables", "text"]
