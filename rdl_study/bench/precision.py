"""What a precision costs: a student's effectiveness in each that its device has.

``rdl precision`` ranks a profile's test candidates with the same weights in each precision;
``results/efficiency/<machine>/precision.csv`` has the values of each query, and ``precision.json``
beside it says what ran where.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.downloads import encoder_path
from rdl_core.devices import PRECISIONS, default_device
from rdl_core.evaluate import compare, per_query, settle_ties
from rdl_core.rerank import rerank
from rdl_study.candidates import lists, passage_tokens, tokens
from rdl_study.profile import Profile
from rdl_study.store import content_hash, machine, project_folder

__all__ = ["measure_precisions", "precision_table", "recorded_precisions"]


def measure_precisions(profile: Profile, model: str, *, folder: Path | None = None) -> pd.DataFrame:
    """Rank a profile's test candidates in each precision, and measure.

    Args:
        profile: Its test candidates, token limits and measure.
        model: Folder or hub id of a trained student, or a name of weights; what it was trained on is
            not known here, so that nobody checks that no test query is among it.
        folder: Gets ``precision.csv`` and ``precision.json``; None keeps nothing.

    Returns:
        ``collection``, ``precision``, ``query_id`` and the measure, a row for each query.

    >>> found = measure_precisions(profile, profile.encoder)
    >>> found["precision"].unique().tolist()
    ['float32', 'bfloat16', 'int8']
    """
    weights = Path(encoder_path(model))
    student = CrossEncoder.from_pretrained(
        weights, query_tokens=profile.query_tokens, passage_tokens=profile.passage_tokens
    ).to(default_device())
    precisions = [*PRECISIONS, *(["int8"] if student.device.type == "cpu" else [])]
    started, parts, data = datetime.now(UTC), [], []
    for test in profile.tests:
        candidates, collection = lists(test), load(test.collection)
        data.append(collection.fingerprint)
        query_ids, queries = tokens(collection.queries, str(weights))
        doc_ids, passages = passage_tokens(collection, str(weights))
        judged = collection.qrels[collection.qrels["query_id"].isin(candidates["query_id"])]
        for precision in precisions:
            scored = rerank(
                student, candidates, queries, passages, query_ids=query_ids, doc_ids=doc_ids,
                precision=precision,
            )
            values = per_query(judged, settle_ties(scored, candidates), [profile.measure])
            parts.append(values.assign(collection=test.collection, precision=precision))
    found = pd.concat(parts)[["collection", "precision", "query_id", profile.measure]]
    if folder:
        safetensors = weights / "model.safetensors"
        manifest = {
            "model": weights.name, "weights": content_hash(safetensors) if safetensors.exists() else None,
            "profile": profile.name, "candidates": f"{profile.test.first_stage} top {profile.test.depth}",
            "data": data, **machine(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": round((datetime.now(UTC) - started).total_seconds(), 1),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        found.round(4).to_csv(folder / "precision.csv", index=False)
        (folder / "precision.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return found


def precision_table(values: pd.DataFrame) -> pd.DataFrame:
    """Each precision's mean and its difference from float32's, by collection and over all queries.

    Args:
        values: From `measure_precisions`.

    >>> rows = [("c", p, q, x) for p, x in (("float32", 0.5), ("int8", 0.25)) for q in "12"]
    >>> precision_table(pd.DataFrame(rows, columns=["collection", "precision", "query_id", "P"]))[
    ...     ["precision", "P", "difference"]].values.tolist()
    [['float32', '0.5000', ''], ['int8', '0.2500', '-0.2500']]
    """
    measure, rows = values.columns[-1], []
    collections = values["collection"].unique()
    for name, part in [*values.groupby("collection", sort=False), ("all", values)]:
        if name == "all" and len(collections) == 1:
            continue
        wide = part.assign(query=part["collection"] + part["query_id"]).pivot(
            index="query", columns="precision", values=measure
        )
        wide = wide[part["precision"].unique()].rename_axis("query_id")
        for precision, row in compare(wide, "float32").iterrows():
            first = precision == "float32"
            interval = f"{row['delta_low']:+.4f} to {row['delta_high']:+.4f}"
            rows.append(
                {
                    "queries of": name, "n": int(row["n_queries"]), "precision": precision,
                    measure: f"{row['mean']:.4f}",
                    "difference": "" if first else f"{row['delta']:+.4f}",
                    "95 % interval": "" if first else interval,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def recorded_precisions(machine: str = "cpu") -> pd.DataFrame:
    """The table of what was recorded on a machine.

    >>> recorded_precisions()["precision"].tolist()[:3]
    ['float32', 'bfloat16', 'int8']
    """
    file = project_folder() / "results" / "efficiency" / machine / "precision.csv"
    return precision_table(pd.read_csv(file, dtype={"query_id": "str"}))
