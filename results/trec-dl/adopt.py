"""How much of a student to use behind five first stages, chosen on one year and measured on the other.

`RDL_MIRROR=... PYTHONPATH=. python results/trec-dl/adopt.py [PROFILE]` trains and ranks what the store
lacks, and writes `adopted.csv` and `adopted.json`. Relevant is what has grade 2 or 3, as TREC counts.
"""

import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pandas as pd

from rdl_core.data.collections import load
from rdl_core.evaluate import compare, per_query, settle_ties
from rdl_core.files import write_json
from rdl_study.grid import rank, rankings
from rdl_study.lists import lists
from rdl_study.profile import load_profile
from rdl_study.store import machine
from rdl_tools.adopt import _calibration_error, adopt

FIRST_STAGES, RELEVANT = ("bm25", "bm25_rm3", "splade", "tas_b", "ada2"), 2
FILE, IDS = Path(__file__).with_name("adopted.csv"), ["query_id", "doc_id"]


def scored(config):
    """Candidates, the student's scores of them, their judgments, and the run of the store."""
    run, frame = rank(config), lists(config.candidates)
    scores = pd.read_parquet(run.folder / "run.parquet").set_index(IDS)["score"]
    scores = scores.reindex(pd.MultiIndex.from_frame(frame[IDS])).to_numpy()
    return frame, scores, load(config.candidates.collection).qrels, run


def main(profile):
    profile = replace(load_profile(profile), seeds=(0,))
    rows, choices, probabilities, runs = [], [], {}, {}
    for stage in FIRST_STAGES:
        own = replace(profile, test=replace(profile.test, first_stage=stage))
        years = {x.candidates.collection: scored(x) for x in rankings(own, own.student())}
        probabilities[stage] = []
        for chosen_on, tested in permutations(years, 2):
            frame, own_scores, judged, run = years[tested]
            adopted = adopt(*years[chosen_on][:3], positive_grade=RELEVANT)
            systems = {
                "first stage": frame.eval("score = -rank"),
                "student": settle_ties(frame[IDS].assign(score=own_scores), frame),
                "adopted": adopted.apply(frame, own_scores),
            }
            for system, ranked in systems.items():
                values = per_query(judged, ranked, "nDCG@10")
                rows.append(values.assign(first_stage=stage, collection=tested, system=system))
            top = frame.loc[frame["rank"] <= adopted.depth, IDS].merge(judged, "left", IDS)
            top = top.merge(systems["adopted"][[*IDS, "score"]], on=IDS)
            grades = top["relevance"].fillna(0).to_numpy()
            probabilities[stage].append(top.assign(relevant=grades >= RELEVANT))
            choices.append({"first_stage": stage, "chosen_on": chosen_on, "weight": adopted.weight,
                            "depth": adopted.depth})  # fmt: skip
            runs[run.manifest["id"]] = run.manifest
    table = pd.concat(rows)[["first_stage", "collection", "system", "query_id", "nDCG@10"]]
    table.round(6).to_csv(FILE, index=False)
    errors = {}
    for stage, frames in [*probabilities.items(), ("all", sum(probabilities.values(), []))]:
        p = pd.concat(frames)
        values = p["score"].to_numpy(), p["relevant"].to_numpy(), p["query_id"], 0
        errors[stage] = dict(zip(("ece", "low", "high"), _calibration_error(*values), strict=True))
    about = {"choices": choices, "calibration_error": errors, "relevant": RELEVANT, "runs": runs}
    write_json(FILE.with_suffix(".json"), about | machine())
    of = table.pivot(index=["first_stage", "query_id"], columns="system", values="nDCG@10")
    for stage, values in [*of.groupby(level=0), ("mean", of.groupby(level=1).mean())]:
        compared = compare(values.reset_index(drop=True), "first stage")
        print(stage, compared.round(4).to_string(), sep="\n")
    print(pd.DataFrame(choices).to_string(), pd.DataFrame(errors).round(4).to_string(), sep="\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["trec-dl"]))
