"""Two ways for `rdl adopt` to choose weight and depth: the best setting, or the mean over resamples.

`PYTHONPATH=. python results/docs/choosing.py RUN.parquet`: a student's ranking of BM25's top 20 of
`rdl/pydocs/test`, alone and made worse by noise. 43 queries choose, the others measure; 400 draws.
Writes `choosing.csv`: mean nDCG@10 on queries that had no part in choosing.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from rdl_core.data.collections import load
from rdl_core.evaluate import per_query
from rdl_study.lists import ListsConfig, lists
from rdl_tools.adopt import _WEIGHTS, Adopted, _best

N_QUERIES, DRAWS, NOISE, IDS = 43, 400, (0, 1, 2, 4), ["query_id", "doc_id"]
TENTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # a mean weight is measured at the nearest tenth


def measured(frame, scores, qrels):
    """nDCG@10 of each query for each weight and depth."""
    values = {}
    for weight, depth in [(0.0, 20), *product((*_WEIGHTS, *TENTHS), (10, 20))]:
        setting = Adopted(weight=weight, depth=depth, slope=1, intercept=0, evidence={})
        run = per_query(qrels, setting.apply(frame, scores), "nDCG@10")
        values[weight, depth] = run.set_index("query_id")["nDCG@10"]
    return pd.DataFrame(values)


def main(path):
    frame = lists(ListsConfig(collection="rdl/pydocs/test", first_stage="bm25", depth=20))
    run = pd.read_parquet(path).set_index(IDS)["score"]
    scores = run.reindex(pd.MultiIndex.from_frame(frame[IDS])).to_numpy()
    qrels, rng = load("rdl/pydocs/test").qrels, np.random.default_rng(0)
    spread = pd.Series(scores).groupby(frame["query_id"].to_numpy()).transform("std").to_numpy()
    rows = []
    for noise in NOISE:
        worse = scores + noise * spread * rng.standard_normal(len(scores))
        values = measured(frame, worse, qrels)
        tried = values[[(0.0, 20), *product(_WEIGHTS, (10, 20))]]
        for draw in range(DRAWS):
            choosing = rng.permutation(len(values)) < N_QUERIES
            means = values[~choosing].mean()
            weight, depth = _best(tried[choosing], seed=draw)
            nearest = (round(weight, 1), 10 if depth < 15 else 20) if weight >= 0.05 else (0.0, 20)
            best = means[tried[choosing].mean().idxmax()]
            rows.append({"noise": noise, "best": best, "resampled": means[nearest]})
    table = pd.DataFrame(rows).groupby("noise").mean().round(4)
    table.to_csv(Path(__file__).with_name("choosing.csv"))
    print(table)


if __name__ == "__main__":
    main(sys.argv[1])
