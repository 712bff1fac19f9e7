"""Makes the lists of this folder again: `make lists`, hours of a laptop's time; can be killed.

Candidates of each query are BM25's and the bi-encoder's best together, and those that the file has: a
processor without bfloat16 makes other vectors, and other passages come last. The LLM of
``teachers/smollm2.yaml`` scores them; a file has the order that its scores make, best first.
"""

import logging
import sys
from pathlib import Path

import pandas as pd

from rdl_core.data.collections import load
from rdl_core.data.formats import read_candidates, write_run
from rdl_core.files import content_hash, versions, write_json
from rdl_study.lists import ListsConfig, candidates_of, chosen_queries, llm_settings, text_sums
from rdl_study.store import machine, runs_folder
from rdl_tools.config import TeachConfig
from rdl_tools.teach import teach

FOLDER, NAME = Path(__file__).parent, "smollm2"
DEPTHS = {"train": (20, 20), "dev": (100, 20), "test": (30, 0)}  # BM25's, the bi-encoder's
DEEPER, QUERIES = 50, 1000  # of this many training queries, both are cut here


def candidates(split: str) -> pd.DataFrame:
    """Passages that the LLM scores, BM25's first."""
    collection = f"rdl/pydocs/{split}"
    wanted = ListsConfig(collection=collection, first_stage="bm25+bi_encoder", depth=20)
    deeper = chosen_queries(wanted)[:QUERIES] if split == "train" else []
    kept = []
    for one, depth in zip(wanted.each(), DEPTHS[split], strict=True):
        frame = candidates_of(one)
        most = frame["query_id"].isin(deeper).map({True: DEEPER, False: depth})
        kept.append(frame[frame["rank"] <= most])
    recorded = pd.read_parquet(FOLDER / f"{split}.parquet", columns=["qid", "docno"])
    kept.append(recorded.set_axis(["query_id", "doc_id"], axis=1))
    both = pd.concat(kept).drop_duplicates(["query_id", "doc_id"])
    return both.assign(rank=both.groupby("query_id").cumcount() + 1)[["query_id", "doc_id", "rank"]]


def make(split: str) -> dict:
    """Score a split's candidates, as far as that is not done; gives what the manifest says of it."""
    collection, work = f"rdl/pydocs/{split}", runs_folder() / f"lists-{NAME}" / split
    work.mkdir(parents=True, exist_ok=True)
    write_run(candidates(split), work / "candidates.run")
    backend = llm_settings(NAME).backend
    asked = TeachConfig(
        candidates=str(work / "candidates.run"), collection=collection, backend=backend
    )
    totals = teach(asked, work / "lists")["totals"]
    lists = read_candidates(work / "lists" / "teacher.parquet")
    names = {"query_id": "qid", "doc_id": "docno", "rank": "rank", "score": "score"}
    lists = lists[[*names]].rename(columns=names)
    lists = lists.astype({"rank": "int16", "score": "float32"}).round({"score": 2})
    path = FOLDER / f"{split}.parquet"
    lists.to_parquet(path, index=False, compression="zstd", compression_level=19)
    return {
        "file": path.name, "sha256": content_hash(path), "fingerprint": load(collection).fingerprint,
        "n_queries": totals["n_queries"], "n_pairs": totals["n_passages"],
        "prompt_tokens": totals["input_tokens"],
    }  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    made = {f"rdl/pydocs/{split}": make(split) for split in DEPTHS}
    about = {"teacher": llm_settings(NAME).backend.name, "machine": machine(), "versions": versions()}
    sums = [text_sums(collection) for collection in made]
    ids = pd.concat(pd.read_parquet(FOLDER / one["file"]) for one in made.values())
    used = pd.concat(sums).groupby(level=0).first().loc[sorted({*ids["qid"], *ids["docno"]})]
    used = used.astype({"query": "UInt32", "passage": "UInt32"}).rename_axis("id").reset_index()
    used.to_parquet(FOLDER / "texts.parquet", index=False, compression="zstd")
    write_json(FOLDER / "manifest.json", about | {"collections": made})
