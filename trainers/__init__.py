"""Ways to train a stack of models. Importing this package fills the registry and does not import torch.

A trainer is `(models, data, members, streams, *, settings) -> trained models`: G freshly built models of one
architecture, the resident data, which records each trains on (G, D), and each one's own generator. Model k
is bit for bit the same alone, in any stack, at any position in it.
"""

from trainers.dp_sgd import dp_sgd as dp_sgd
from trainers.sgd import sgd as sgd
from trainers.speedyresnet import speedyresnet as speedyresnet
from trainers.transformer import transformer as transformer
