"""LoRA references of a language model: ours, in stacks on one base, against HF Trainer and PEFT one after another.

python -m benchmarks.lora [--full] [--only NAME] [--rounds N]

Eight adapters on gpt2_tiny, each trained on a random half of the same real texts (docstrings), every text once. Two
peers, written here, both transformers' Trainer on a PEFT model: `longest` pads a batch to its longest text and takes
padding out of the loss; `512` pads every text to 512 tokens and leaves padding in the loss, as the original tool
ships it. Neither evaluates or saves. A peer trains one adapter in each round and its seconds are multiplied by M: it
trains one after another, so nothing else could come out. CPU seconds of one process on one thread, on both sides.

First the two are shown to train the same: three steps on the same whole batch give the same adapters, to rounding.
Peak memory is that of processes of their own: ours trains all M at once, the peer one at a time (it is given two).
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.side_by_side import Row, Spread, fresh, header, last_line, one_thread, peak_rss, show, side_by_side

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")
LONGEST, PADDED = "longest", "512"
CONTEXT, ROUNDS, FLOOR = 512, 5, 3.0
ROUNDS_OF = {LONGEST: ROUNDS, PADDED: 3}  # padding to 512 takes many times as long
LORA = {"type": "lora", "r": 16, "target_modules": ["c_attn", "c_proj", "c_fc"]}  # of configs/agnews_lora.yaml


@dataclass(frozen=True)
class Case:
    name: str
    count: int  # of adapters
    model: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 1000
    texts: int = 512  # in the pool; half of them train each adapter
    batch_size: int = 8
    epochs: int = 1
    longest: int | None = None  # tokens of a text: longer ones are cut off
    precision: str = "float32"  # of both sides


TINY = Case("gpt2_tiny, M = 8", 8)
WIDE = Case("gpt2_tiny of width 128, M = 8", 8, {"width": 128}, 2000)
SHORT = Case("gpt2_tiny, 4 texts of up to 32 tokens a batch, M = 8", 8, {}, 512, batch_size=4, longest=32)
HALF = replace(WIDE, name=f"{WIDE.name}, bfloat16", precision="bfloat16")
SMALL, FULL = [SHORT, TINY], [SHORT, TINY, replace(TINY, name="gpt2_tiny, M = 16", count=16), WIDE, HALF]


@functools.cache
def texts(count: int, vocabulary: int, longest: int | None = None) -> Any:
    """So many paragraphs as tokens: real lengths, about 50 tokens each."""
    from pathlib import Path

    import numpy as np

    import dataset  # noqa: F401  (fills the registry)
    from core.registry import DATASETS
    from dataset.tokens import byte_pairs, tokenised

    data = DATASETS["docstrings"](Path("data"), 0, **DATASETS.bind("docstrings", {"num_records": 2 * count}))
    tokenizer = byte_pairs(data.pool.texts or (), vocabulary)
    found = tokenised(data, tokenizer, context=CONTEXT, max_length=longest, truncate=True, cache=Path("data"))
    return found.pool.select(np.arange(count)), found.num_classes


def halves(case: Case) -> Any:
    """Who trains on what (M, texts)."""
    import numpy as np

    from core.rng import stream

    return np.stack([stream(0, "half", k).permutation(case.texts) < case.texts // 2 for k in range(case.count)])


def adapter(case: Case, k: int) -> Any:
    """A fresh adapter on the frozen model of the case, which is one in this process."""
    import models
    from core.registry import MODELS
    from core.rng import stream

    settings = MODELS.bind("gpt2_tiny", {**case.model, "context": CONTEXT})
    classes = texts(case.texts, case.vocabulary, case.longest)[1]
    return models.build("gpt2_tiny", settings, (CONTEXT,), classes, stream(0, "init", k), settings_of(case)["peft"])


def settings_of(case: Case) -> dict[str, Any]:
    import trainers  # noqa: F401  (fills the registry)
    from core.registry import TRAINERS

    recipe = {"epochs": case.epochs, "batch_size": case.batch_size, "learning_rate": 1e-3, "peft": LORA}
    recipe["precision"] = case.precision
    return TRAINERS.bind("transformer", recipe)


# --- ours and the peers -----------------------------------------------------------------------------------------------


def ours(case: Case, members: Any) -> Callable[[], list[Any]]:
    """Train an adapter for each row of `members`, in stacks as the pipeline cuts them."""
    from core.registry import TRAINERS
    from core.rng import stream
    from trainers.resident import Resident

    settings = settings_of(case)
    width = TRAINERS.fact("transformer", "stack")(settings)
    data = Resident.of(texts(case.texts, case.vocabulary, case.longest)[0], (0.0,), (1.0,), "cpu")

    def train() -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(members), width):
            numbers = range(start, min(start + width, len(members)))
            stack, streams = [adapter(case, k) for k in numbers], [stream(0, "train", k) for k in numbers]
            found += TRAINERS["transformer"](stack, data, members[list(numbers)], streams, **settings)
        return found

    return train


def hugging_face(case: Case, members: Any, padding: str) -> Callable[[], list[Any]]:
    """Train an adapter for each row of `members`, one after another, with transformers' Trainer."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    records, settings = texts(case.texts, case.vocabulary, case.longest)[0], settings_of(case)

    def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(record["input_ids"]) for record in batch]
        width = CONTEXT if padding == PADDED else max(map(len, ids))
        stacked, own = torch.zeros(len(ids), width, dtype=torch.int64), torch.zeros(len(ids), width, dtype=torch.int64)
        for row, one in enumerate(ids):
            stacked[row, : len(one)], own[row, : len(one)] = one, 1
        labels = stacked.clone() if padding == PADDED else stacked.masked_fill(own == 0, -100)
        return {"input_ids": stacked, "attention_mask": own, "labels": labels}

    def train_one(k: int, folder: str) -> Any:
        mine = [{"input_ids": records.x[i, : records.lengths[i]].tolist()} for i in members[k].nonzero()[0]]
        arguments = transformers.TrainingArguments(
            output_dir=folder,  # nothing is written there
            per_device_train_batch_size=settings["batch_size"],
            num_train_epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type=settings["schedule"],
            weight_decay=settings["weight_decay"],
            max_grad_norm=settings["clip_norm"],
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=case.precision == "bfloat16",
            seed=k,
        )
        model = adapter(case, k)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=mine, data_collator=collated)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return model

    def train() -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            return [train_one(k, folder) for k in range(len(members))]

    return train


# --- what is compared -------------------------------------------------------------------------------------------------


def check(case: Case) -> float:
    """Both sides, on batches that are the same: the largest difference between two weights of their adapters."""
    import numpy as np

    whole = replace(case, texts=32, batch_size=32, epochs=3, precision="float32")
    members = halves(whole)[:2]
    pairs = zip(ours(whole, members)(), hugging_face(whole, members, LONGEST)(), strict=True)
    found = 0.0
    for (mine, theirs), k in zip(pairs, range(2), strict=True):
        before, a, b = (_weights(model) for model in (adapter(whole, k), mine, theirs))
        np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(a - before).max())
        found = max(found, float(np.abs(a - b).max()))
    return found


def _weights(model: Any) -> Any:
    import torch

    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).numpy()


def compare(cases: list[Case], rounds: int | None) -> list[Row]:
    rows = []
    for case in cases:
        difference, members, lengths = (
            check(case),
            halves(case),
            texts(case.texts, case.vocabulary, case.longest)[0].lengths,
        )
        train = ours(case, members)
        for padding in (LONGEST, PADDED):
            row = side_by_side(
                f"{case.name}, against HF Trainer, padded to {padding}",
                train,
                hugging_face(case, members[:1], padding),
                rounds=rounds or ROUNDS_OF[padding],
                floor=FLOOR if case in (SHORT, TINY) else None,
                part=1 / case.count,
                notes=f"peer: 1 adapter, its seconds times {case.count}",
                tokens=float(lengths.mean()),
                steps=steps(case, members),
                difference=difference,
            )
            show(row)
            rows.append(row)
        for row in memory(case):
            show(row)
            rows.append(row)
    return rows


def steps(case: Case, members: Any) -> dict[str, float]:
    """Steps that one adapter takes on both sides. Ours are a few more: batches of a length end with a short one."""
    from trainers.text_batches import Buckets

    buckets = Buckets.of(texts(case.texts, case.vocabulary, case.longest)[0].lengths, case.batch_size)
    mine = [case.epochs * buckets.steps(member, case.batch_size) for member in members]
    return {"ours": sum(mine) / len(mine), "peer": case.epochs * -(-int(members[0].sum()) // case.batch_size)}


def memory(case: Case) -> list[Row]:
    """Peak memory of a process, with all that it imports."""
    found = {side: fresh("benchmarks.lora", "--peak", side, "--only", case.name) for side in ("ours", LONGEST, PADDED)}
    mine, rows = found["ours"], []
    for padding in (LONGEST, PADDED):
        theirs = found[padding]
        notes = f"beyond imports and texts: {mine['extra']:.0f} MiB for {case.count} at once, {theirs['extra']:.0f} MiB"
        name = f"{case.name}, peak memory, against padding to {padding}"
        spreads = Spread.of([mine["peak"]]), Spread.of([theirs["peak"]])
        rows.append(Row(name, theirs["peak"] / mine["peak"], None, "MiB", *spreads, None, 1, "", notes, {}))
    return rows


def peak(case: Case, side: str) -> dict[str, float]:
    """MiB that this process held at most, and how many of them its training added."""
    from peft import PeftModel  # noqa: F401  (both sides)

    members = halves(case)
    train = ours(case, members) if side == "ours" else hugging_face(case, members[:2], side)
    adapter(case, 0)
    before = peak_rss()
    train()
    return {"peak": peak_rss(), "extra": peak_rss() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 16 adapters, and a wider model")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS_OF[LONGEST]} and {ROUNDS_OF[PADDED]} if left out")
    parser.add_argument("--peak", choices=("ours", LONGEST, PADDED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    import torch

    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak(next(case for case in FULL if case.name == options.only), options.peak)))
        return
    header(*PACKAGES)
    cases = [case for case in (FULL if options.full else SMALL) if options.only in case.name]
    print(last_line(compare(cases, options.rounds), *PACKAGES))


if __name__ == "__main__":
    main()
