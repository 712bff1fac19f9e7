"""Lightning IR as a system: for the interpreter of an environment of its own.

It needs transformers 4, so nothing of ours can be imported here. The work is that of
`rdl_study.bench.systems`.
"""

import json
import queue
import tempfile
import threading
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning_ir import CrossEncoderModule, LightningIRDataModule, RankNet, RunDataset
from lightning_ir.models import MonoConfig
from safetensors.torch import load_file


def _module(work: dict, **own: object) -> CrossEncoderModule:
    """The encoder's weights, and behind them BERT's own head, which Lightning IR leaves out."""
    config = MonoConfig(
        query_length=work["query_tokens"], doc_length=work["passage_tokens"],
        pooling_strategy="bert_pool", linear_bias=True,
    )  # fmt: skip
    module = CrossEncoderModule(model_name_or_path=work["model"], config=config, **own)
    weights = load_file(Path(work["model"]) / "model.safetensors")
    with torch.no_grad():
        for name, layer in (
            ("bert.pooler.dense", module.model.bert_pool[0]), ("classifier", module.model.linear)
        ):
            layer.weight.copy_(weights[f"{name}.weight"])
            layer.bias.copy_(weights[f"{name}.bias"])
    return module


def rank(work: dict):
    """``CrossEncoderModule.score``, all passages of a query at once, as it is made to be called."""
    module = _module(work).eval()

    def score(number: int) -> torch.Tensor:
        asked = work["lists"][number]
        with torch.inference_mode():
            return module.score(asked["query"], asked["passages"]).scores

    return score


def _data(work: dict, *, sampling_strategy: str, sample_size: int, batch: int):
    """Its data module over lists with texts in the run, in memory: no look-up in a doc store."""
    folder = Path(tempfile.mkdtemp())
    rows = [
        {"query_id": str(n), "query": each["query"], "doc_id": f"{n}-{i}", "text": passage,
         "rank": i + 1, "score": -i}
        for n, each in enumerate(work["lists"])
        for i, passage in enumerate(each["passages"])
    ]  # fmt: skip
    run = folder / "lists.jsonl"
    run.write_text("".join(json.dumps(row) + "\n" for row in rows))
    depth = max(len(each["passages"]) for each in work["lists"])
    dataset = RunDataset(
        run, depth=depth, sample_size=sample_size, sampling_strategy=sampling_strategy,
        targets="score",
    )  # fmt: skip
    return LightningIRDataModule(
        train_dataset=dataset, train_batch_size=batch, shuffle_train=False, num_workers=0
    )


def train(work: dict):
    """A step of its trainer with RankNet on one list, loading included."""
    go, done = queue.Queue(), queue.Queue()
    module = _module(work, loss_functions=[RankNet()])
    module.set_optimizer(torch.optim.AdamW, lr=1e-5)
    size = len(work["lists"][0]["passages"])
    data = _data(work, sampling_strategy="top", sample_size=size, batch=1)

    class Stop(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            done.put(None)
            go.get()

    def fit() -> None:
        try:
            Trainer(
                accelerator="cpu", max_epochs=1000, gradient_clip_val=1.0, callbacks=[Stop()],
                logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(module, data)
        except BaseException as error:
            done.put(error)

    def wait() -> None:
        if error := done.get():
            raise error

    def step(number: int) -> None:
        go.put(None)
        wait()

    threading.Thread(target=fit, daemon=True).start()
    wait()
    return step


def load(work: dict, *, n_lists: int, list_size: int, tokenised: bool = False):
    """Batches from its data loader; texts, or tokens as its training step makes them of these."""
    module = _module(work)
    data = _data(work, sampling_strategy="random", sample_size=list_size, batch=n_lists)
    batches = iter(())

    def batch(number: int) -> int:
        nonlocal batches
        found = next(batches, None)
        if found is None:
            batches = iter(data.train_dataloader())
            found = next(batches)
        texts = [text for docs in found.docs for text in docs]
        if tokenised:
            module.prepare_input(found.queries, texts, [len(docs) for docs in found.docs])
        return len(texts)

    return batch
