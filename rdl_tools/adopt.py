"""Adoption: how much of a student to use behind a first stage, so that the search does not get worse.

From judged queries: the weight of the student's scores beside the first stage's (0 to 1, both
standardised within a query), the depth that is re-ranked, and what blended scores mean as
probabilities of relevance. All that is said of them is measured on queries that had no part in
choosing (cross-fitting).

Reference: Platt, Advances in Large Margin Classifiers 1999; Guo et al., ICML 2017 (calibration error).
"""

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from rdl_core.cross_encoder import CrossEncoder, model_path
from rdl_core.data.collections import read_corpus, read_judgments
from rdl_core.evaluate import compare, equivalence, per_query, settle_ties
from rdl_core.files import read_json, write_json
from rdl_core.rerank import rerank
from rdl_core.teachers.encoders import fuse
from rdl_core.tokens import TokenCorpus
from rdl_tools.config import AdoptConfig
from rdl_tools.student import open_student, parts_of

__all__ = ["ADOPTED", "Adopted", "adopt", "adopt_files", "adopted_of", "write_adopted"]

ADOPTED = "adopted.json"  #: The file in a student's folder.
_IDS = ["query_id", "doc_id"]
_WEIGHTS, _DEPTHS, _BINS, _RESAMPLES = (0.2, 0.4, 0.6, 0.8, 1.0), (10, 20, 50, 100), 10, 1000
_SECTION = "\n## Adopted\n"


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was chosen for a student behind a first stage, and the evidence."""

    weight: float  #: Of the student's scores, 0 to 1; the first stage has the rest.
    depth: int  #: Passages of a query that are re-ranked, the first stage's best; others come behind.
    slope: float  #: The probability is the logistic function of slope * blended score + intercept.
    intercept: float
    evidence: dict  #: On held-out queries; see `adopt`.

    def apply(self, candidates: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
        """Candidates ``query_id, doc_id, rank [, score]`` as a run by the student's scores ``[rows]``.

        ``score`` is the probability of relevance, or minus the first stage's rank below the depth.
        """
        blended = _blended(candidates, scores, self.weight, self.depth)
        probability = expit(self.slope * blended + self.intercept)
        score = np.where(np.isnan(blended), -candidates["rank"], probability)
        return settle_ties(candidates[_IDS].assign(score=score), candidates)

    def rerank(
        self, student: CrossEncoder, candidates: pd.DataFrame, corpus: TokenCorpus, **options: Any
    ) -> pd.DataFrame:
        """A run as `apply` gives it, of what `rdl_core.rerank.rerank` scores with its options."""
        top = candidates[candidates["rank"] <= self.depth]
        scored = candidates[_IDS].merge(rerank(student, top, corpus, **options), "left", _IDS)
        return self.apply(candidates, scored["score"].to_numpy())

    def __str__(self) -> str:
        """The verdict in Markdown."""
        seen, systems = self.evidence, {"the student alone": "student", "both, as adopted": "adopted"}
        return "\n".join([
            f"{seen['measure']} on {seen['n_queries']:,} judged queries, each measured with what the "
            "others chose:\n",
            f"- the first stage alone: {seen['first_stage']:.3f}",
            *("- {}: {mean:.3f}, **{verdict}** ({delta:+.3f}, 95 % interval {delta_low:+.3f} to "
              "{delta_high:+.3f}, equivalence p = {p_tost:.2g})".format(label, **seen[name])
              for label, name in systems.items()),
            f"\nAdopted: weight {self.weight:g} for the first {self.depth} passages. Scores are "
            f"probabilities of relevance, {seen['ece']:.3f} off on average ({seen['ece_low']:.3f} to "
            f"{seen['ece_high']:.3f}).",
        ])  # fmt: skip


def adopt(
    candidates: pd.DataFrame, scores: np.ndarray, qrels: pd.DataFrame, *, measure: str = "nDCG@10",
    margin: float = 0.02, positive_grade: int = 1, folds: int = 5, seed: int = 0,
) -> Adopted:  # fmt: skip
    """Choose weight and depth by a measure, averaged over resamples (bagging), and a calibration.

    `candidates` have ``query_id, doc_id, rank`` and perhaps the first stage's ``score``, else -rank
    counts; `scores` are the student's, ``[rows]``. The evidence of each of `folds` parts of the
    queries was chosen on the others: ``first_stage``, a mean; for ``student`` and ``adopted`` their
    ``mean`` and ``delta`` with a 95 % bootstrap interval, ``p_tost`` for a difference below `margin`,
    and the ``verdict``: helps, harms, equal or cannot tell; ``ece``, the expected calibration error of
    the probability in 10 bins, with its interval over queries. Passages that are not judged count as
    not relevant. What harms gets weight 0. ValueError for too few judged queries, or without a relevant
    or an irrelevant candidate.
    """
    judged = candidates["query_id"].isin(qrels["query_id"]).to_numpy()
    if (n := candidates.loc[judged, "query_id"].nunique()) < 2 * folds:
        raise ValueError(f"expected at least {2 * folds} judged queries; got {n}: judge more")
    scores, candidates = scores[judged], candidates[judged].reset_index(drop=True)
    qrels = qrels[qrels["query_id"].isin(candidates["query_id"])]
    grades = candidates[_IDS].merge(qrels, "left", _IDS)["relevance"].fillna(0)
    relevant = (grades >= positive_grade).to_numpy()
    if relevant.all() or not relevant.any():
        which = "irrelevant" if relevant.all() else "relevant"
        expected = f"relevant and irrelevant candidates (grade {positive_grade} or more)"
        raise ValueError(f"expected {expected}; none is {which}: check ids and positive_grade")
    deepest = int(candidates["rank"].max())
    depths = [*(depth for depth in _DEPTHS if depth < deepest), deepest]

    def measured(weight: float, depth: int) -> pd.Series:
        own = Adopted(weight=weight, depth=depth, slope=1, intercept=0, evidence={})
        return per_query(qrels, own.apply(candidates, scores), measure).set_index("query_id")[measure]

    values = pd.DataFrame({x: measured(*x) for x in [(0.0, deepest), *product(_WEIGHTS, depths)]})
    fold_of = pd.Series(np.random.default_rng(seed).permutation(len(values)) % folds, values.index)
    fold_of_row = fold_of[candidates["query_id"]].to_numpy()
    adopted, probability = pd.Series(np.nan, values.index), np.full(len(candidates), np.nan)
    for fold in range(folds):
        held, rows = fold_of == fold, fold_of_row == fold
        weight, depth = _best(values[~held], seed)
        adopted[held] = measured(weight, depth)[held]
        blended = _blended(candidates, scores, weight, depth)
        slope, intercept = _platt(blended[~rows], relevant[~rows])
        probability[rows] = expit(slope * blended[rows] + intercept)
    means = {"first_stage": values[0.0, deepest], "student": values[1.0, deepest], "adopted": adopted}
    table = compare(columns := pd.DataFrame(means), "first_stage")
    evidence = {"measure": measure, "margin": margin, "positive_grade": positive_grade, "folds": folds}
    evidence |= {"n_queries": len(values), "first_stage": float(table.loc["first_stage", "mean"])}
    for name in ("student", "adopted"):
        row = table.loc[name, ["mean", "delta", "delta_low", "delta_high"]].astype(float).to_dict()
        tost = equivalence(columns, name, "first_stage", margin=margin)
        verdict = "equal" if tost.equivalent else "cannot tell"
        verdict = "helps" if row["delta_low"] > 0 else "harms" if row["delta_high"] < 0 else verdict
        evidence[name] = {"verdict": verdict, **row, "p_tost": tost.p_value}
    harms = evidence["adopted"]["verdict"] == "harms"
    weight, depth = (0.0, deepest) if harms else _best(values, seed)
    slope, intercept = _platt(_blended(candidates, scores, weight, depth), relevant)
    evidence |= _calibration_error(probability, relevant, candidates["query_id"], seed)
    return Adopted(weight=weight, depth=depth, slope=slope, intercept=intercept, evidence=evidence)


def adopted_of(student: str | Path) -> Adopted | None:
    """What was adopted for a student, by its folder or that of its training; None: nothing."""
    path = Path(model_path(student)) / ADOPTED
    return Adopted(**read_json(path)) if path.is_file() else None


def write_adopted(adopted: Adopted, folder: str | Path) -> None:
    """Write it into a student's folder, and into the model card, if there is one."""
    write_json(Path(folder) / ADOPTED, asdict(adopted))
    if (card := Path(folder) / "README.md").is_file():
        text = card.read_text(encoding="utf-8").partition(_SECTION)[0]
        card.write_text(f"{text}{_SECTION}{adopted}\n", encoding="utf-8")


def adopt_files(config: AdoptConfig) -> Adopted:
    """`rdl adopt`: `adopt` on files, written into the student's folder."""
    if not (folder := Path(model_path(config.student))).is_dir():
        raise ValueError(f"{config.student}: expected the folder of a student, to write into")
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    qrels = read_judgments(config.qrels)
    if not (judged := corpus.candidates["query_id"].isin(qrels["query_id"])).any():
        raise ValueError(f"{config.qrels} judges no query of {config.candidates}: are ids the same?")
    corpus = replace(corpus, candidates=corpus.candidates[judged])
    options = {x: getattr(config, x) for x in ("measure", "margin", "positive_grade", "folds")}
    # By the first stage's order, which takes seconds: what cannot be chosen from is refused here.
    adopt(corpus.candidates, -corpus.candidates["rank"].to_numpy(float), qrels, **options)
    student, precision = open_student(config)
    scored = [rerank(student, *part, precision=precision) for part in parts_of(corpus, student)]
    scores = pd.concat(scored).rename(columns={"score": "student"})
    candidates = corpus.candidates.sort_values(["query_id", "rank"]).merge(scores, on=_IDS)
    adopted = adopt(candidates, candidates["student"].to_numpy(), qrels, **options)
    write_adopted(adopted, folder)
    return adopted


def _blended(candidates: pd.DataFrame, scores: np.ndarray, weight: float, depth: int) -> np.ndarray:
    """The student's and the first stage's scores, standardised within a query, by weight.

    Float64 ``[rows]``, NaN below the depth.
    """
    top = (candidates["rank"] <= depth).to_numpy()
    reranked, blended = candidates[top], np.full(len(candidates), np.nan)
    first_stage = -reranked["rank"].to_numpy(float)
    if "score" in reranked:  # a file may have kept scores that do not go with its ranks
        by_rank = reranked.sort_values("rank")
        odd = by_rank["score"].isna() | (by_rank.groupby("query_id")["score"].diff() > 0)
        fitting = ~reranked["query_id"].isin(by_rank["query_id"][odd]).to_numpy()
        first_stage = np.where(fitting, reranked["score"], first_stage)
    own = fuse(reranked, scores[top]) if weight else 0.0  # without a weight, there may be no scores
    blended[top] = weight * own + (1 - weight) * fuse(reranked, first_stage)
    return blended


def _best(values: pd.DataFrame, seed: int) -> tuple[float, int]:
    """Mean weight and median depth of what is best on resampled queries; 0 if most do not re-rank."""
    draws = np.random.default_rng(seed).multinomial(len(values), [1 / len(values)] * len(values), 200)
    settings = np.array(values.columns.tolist())[(draws @ values.to_numpy()).argmax(axis=1)]
    weight, depth = round(float(settings[:, 0].mean()), 2), int(np.median(settings[:, 1]))
    return (weight, depth) if np.median(settings[:, 0]) else (0.0, int(values.columns[0][1]))


def _platt(blended: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the probability of relevance; the slope is above 0, as order must stay."""
    from sklearn.linear_model import LogisticRegression  # nearly a second

    known = ~np.isnan(blended)
    fitted = LogisticRegression(C=np.inf).fit(blended[known, None], relevant[known])
    return max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])


def _calibration_error(
    probability: np.ndarray, relevant: np.ndarray, query_ids: pd.Series, seed: int
) -> dict[str, float]:
    """Mean distance of probability and share of relevant passages over bins, and its 95 % interval."""
    known = ~np.isnan(probability)
    bins = np.minimum((probability[known] * _BINS).astype(int), _BINS - 1)
    queries, ids = pd.factorize(query_ids[known])
    gaps, counts = np.zeros((2, len(ids), _BINS))
    np.add.at(gaps, (queries, bins), probability[known] - relevant[known])
    np.add.at(counts, (queries, bins), 1)
    # How often each query is drawn; the first row takes each once.
    draws = np.random.default_rng(seed).multinomial(len(ids), [1 / len(ids)] * len(ids), _RESAMPLES)
    draws = np.vstack([np.ones(len(ids)), draws])
    errors = np.abs(draws @ gaps).sum(1) / (draws @ counts).sum(1)
    error, low, high = map(float, (errors[0], *np.quantile(errors[1:], [0.025, 0.975])))
    return {"ece": error, "ece_low": min(low, error), "ece_high": high}  # resampling adds error
