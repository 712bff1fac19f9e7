"""Lightning IR as a system, for an environment of its own: it needs transformers 4.

Nothing of ours can be imported here. The work is that of `rdl_study.bench.systems`.
"""

import json
import tempfile
from itertools import count
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning_ir import CrossEncoderModule, LightningIRDataModule, RankNet, RunDataset
from lightning_ir.models import MonoConfig
from safetensors.torch import load_file


def rank(work: dict):
    """``CrossEncoderModule.score``, all passages of a query at once, as it is made to be called."""
    module = _module(work).eval()

    @torch.inference_mode()
    def score(number: int) -> torch.Tensor:
        return module.score(work["lists"][number]["query"], work["lists"][number]["passages"]).scores

    return score


def train(work: dict):
    """A step of its trainer with RankNet on one list, loading included."""
    module = _module(work, loss_functions=[RankNet()])
    module.set_optimizer(torch.optim.AdamW, lr=1e-5)
    data = _data(work, "top", len(work["lists"][0]["passages"]), batch=1)

    def loop(step_ended) -> None:
        class Stop(Callback):
            def on_train_batch_end(self, *_: object) -> None:
                step_ended()

        Trainer(
            accelerator="cpu", max_epochs=1000, gradient_clip_val=1.0, callbacks=[Stop()],
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)  # fmt: skip

    loop.is_loop = True
    return loop


def load(work: dict, *, n_lists: int, list_size: int, tokenised: bool = False):
    """Batches from its data loader: texts, or tokens as its training step makes them of these."""
    module, data = _module(work), _data(work, "random", list_size, batch=n_lists)

    batches = (loaded for _ in count() for loaded in data.train_dataloader())

    def batch(number: int) -> int:
        loaded = next(batches)
        texts = [text for docs in loaded.docs for text in docs]
        if tokenised:
            module.prepare_input(loaded.queries, texts, [len(docs) for docs in loaded.docs])
        return len(texts)

    return batch


def _module(work: dict, **own: object) -> CrossEncoderModule:
    """The encoder's weights, and behind them BERT's own head, which Lightning IR leaves out."""
    limits = {"query_length": work["query_tokens"], "doc_length": work["passage_tokens"]}
    config = MonoConfig(**limits, pooling_strategy="bert_pool", linear_bias=True)
    module = CrossEncoderModule(model_name_or_path=work["model"], config=config, **own)
    weights = load_file(Path(work["model"]) / "model.safetensors")
    heads = {"bert.pooler.dense": module.model.bert_pool[0], "classifier": module.model.linear}
    for name, layer in heads.items():
        layer.load_state_dict({x: weights[f"{name}.{x}"] for x in ("weight", "bias")})
    return module


def _data(work: dict, sampling_strategy: str, sample_size: int, *, batch: int):
    """Its data module over lists with texts in the run, in memory: no look-up in a doc store."""
    run = Path(tempfile.mkdtemp()) / "lists.jsonl"
    rows = [{"query_id": str(n), "query": x["query"], "doc_id": f"{n}-{i}", "text": text,
             "rank": i + 1, "score": -i}
            for n, x in enumerate(work["lists"]) for i, text in enumerate(x["passages"])]  # fmt: skip
    run.write_text("".join(json.dumps(row) + "\n" for row in rows))
    depth = max(len(each["passages"]) for each in work["lists"])
    strategy = {"sample_size": sample_size, "sampling_strategy": sampling_strategy}
    dataset = RunDataset(run, depth=depth, targets="score", **strategy)
    own = {"train_batch_size": batch, "shuffle_train": False, "num_workers": 0}
    return LightningIRDataModule(train_dataset=dataset, **own)
