"""Resident memory of a training process, for the page on costs: `make memory`.

4 lists of 20 passages of up to 119 tokens a step, bfloat16, word embeddings frozen.
"""

import os
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import torch

from rdl_core import CrossEncoder, RankedLists, StageConfig, TokenCorpus, bm25, load
from rdl_core.distill import Training, draw
from rdl_core.files import versions, write_json
from rdl_study.store import machine

STEPS = int(os.environ.get("STEPS", 500))
FILE = Path(__file__).parent / "cpu" / "memory.csv"

torch.manual_seed(0)
collection = load("rdl/pydocs/train")
queries = collection.queries[:300]
candidates = bm25(queries, collection.passages, depth=20)
candidates["teacher_rank"] = candidates["rank"]
texts = collection.passages[collection.passages["doc_id"].isin(candidates["doc_id"])]
student = CrossEncoder.from_pretrained("all-MiniLM-L6-v2", query_tokens=24, passage_tokens=92)
lists = RankedLists.from_frame(candidates, TokenCorpus.of(queries, texts, student.tokenizer))
config = StageConfig(
    list_size=20, queries_per_step=4, steps=STEPS, precision="bfloat16", dropout=0.0,
    train_word_embeddings=False,
)  # fmt: skip
rows = []
with tempfile.TemporaryDirectory() as folder:
    training = Training(student, config, Path(folder))
    for step in range(STEPS):
        training.set_learning_rate(step)
        training.step(*draw(lists, config, seed=0, step=step), seed=step)
        if (step + 1) % 10 == 0:
            resident = psutil.Process().memory_info().rss / 1e6
            rows.append({"step": step + 1, "resident_mb": round(resident)})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(FILE, index=False)
write_json(FILE.with_suffix(".json"), machine() | {"versions": versions()})
