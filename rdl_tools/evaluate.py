"""`rdl evaluate`: runs measured, and tested against one of them."""

from pathlib import Path

import pandas as pd

from rdl_core.data.collections import read_judgments
from rdl_core.data.formats import read_candidates
from rdl_core.evaluate import compare, equivalence, per_query
from rdl_tools.config import EvaluateConfig

__all__ = ["evaluate_files"]


def evaluate_files(config: EvaluateConfig) -> str:
    """Measure runs in files and compare them with one of them, by default the first.

    Returns `compare`'s table with ``p_tost`` and ``equivalent`` for each measure. Runs are named by
    their files, or paths where names repeat. Ranks count, not scores that a file may have kept.
    """
    names = [Path(path.removesuffix(".gz")).stem for path in config.runs]
    if len(set(names)) < len(names):
        names = list(config.runs)
    if len(set(names)) < len(names):
        raise ValueError(f"expected each run once; got {', '.join(names)}: name it once")
    baseline, qrels, measured = config.baseline or names[0], read_judgments(config.qrels), {}
    for name, path in zip(names, config.runs, strict=True):
        run = read_candidates(path, config.format).eval("score = -rank")
        measured[name] = per_query(qrels, run, config.measures)
    values = pd.concat(measured, names=["system"]).reset_index("system")
    tables, texts = {}, []
    for measure in config.measures:
        wide = values.pivot(index="query_id", columns="system", values=measure)[names]
        tables[measure] = table = compare(wide, baseline, alpha=config.alpha)
        for name in table.index.drop(baseline):
            test = equivalence(wide, name, baseline, margin=config.margin, alpha=config.alpha)
            table.loc[name, ["p_tost", "equivalent"]] = test.p_value, test.equivalent
        shown = table.drop(columns="n_queries").dropna(axis=1, how="all")
        text = shown.to_string(float_format="{:.4f}".format, na_rep="")
        count = "1 query, too few for tests" if len(wide) == 1 else f"{len(wide)} queries"
        texts.append(f"{measure}, {count}\n{text}")
    if config.per_query:
        values.to_csv(config.per_query, index=False)
    if config.table:
        pd.concat(tables, names=["measure"]).to_csv(config.table)
    return "\n\n".join(texts)
