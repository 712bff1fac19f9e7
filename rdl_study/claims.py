"""The claim ledger: each claim of the paper, its verdicts in our recorded runs, and the reader's run.

That one system is better is *reproduced* if the 95 % interval of the difference lies above 0, *partly*
if the difference is positive. That two are equal is *reproduced* if they are equivalent within 0.02
(TOST, alpha .05), *partly* if the difference is smaller than that. Else: *not reproduced*. Where one of
two students orders worse than the BM25 that both re-rank, it has not learnt: *not comparable*.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML

from rdl_core.evaluate import compare, equivalence
from rdl_study.bench import race
from rdl_study.grid import measure
from rdl_study.notebook import declared
from rdl_study.profile import Profile
from rdl_study.tables import PROFILES, as_seeds, published, recorded

__all__ = ["Claim", "claims", "ledger", "pair_of", "verdict"]

_MARGIN = 0.02


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about two systems."""

    text: str
    published: str
    page: str
    part: str = ""  # of the page; empty: not attempted
    better: str = ""  # pattern of the label of the system that should be better; the last match
    worse: str = ""  # pattern of the other's; the first match
    equal: bool = False  # the claim is that neither is better
    measured: str = ""  # what was recorded, of a claim about costs


def claims() -> list[Claim]:
    """The paper's claims, with what it published for each."""
    trec, depth, loss = published("trec_dl"), published("depth"), published("loss")
    seconds, tirex = published("efficiency")["seconds_per_query"], published("tirex")
    mean, bm25 = trec.mean(axis=1), trec.filter(like="bm25/").mean(axis=1)
    dual = "dual/rank-distillm-colbert"
    both, alone = "dual, lists from bm25", "single, lists from bm25"
    window, llm, ours = race.recorded("window"), "listwise LLM (7B), a window", "ours, ELECTRA-base"
    times = 9 * race.ratios(window.timings, llm).loc[ours, "median"]  # windows of a list
    peaks = {name: machine["peak_bytes"] for name, machine in window.manifest["machines"].items()}

    def gain(better: float, worse: float) -> str:
        return f"{better - worse:+.3f}"

    def factor(costs: float, claimed: float) -> str:
        word = "reproduced" if costs >= claimed else "partly" if costs > 1 else "not reproduced"
        return f"{word}; {costs:.0f} times; random weights, CPU"

    return [
        Claim("A student matches its LLM teacher on BM25's candidates",
              gain(bm25[dual], bm25["RankZephyr"]), "effectiveness", "bm25",
              "student", r"smollm2|teacher \((?!\w+_fused).*", equal=True),
        Claim("The second stage, on a teacher's order, improves on contrastive training alone",
              gain(mean[dual], mean["monoELECTRA-base, stage 1 only"]), "effectiveness", "bm25",
              "student", "student after stage 1"),
        Claim("Training in two stages beats the listwise stage alone",
              gain(mean[dual], mean["single/rank-distillm-colbert"]), "negatives", "first stages",
              both, alone),
        Claim("Lists from a neural first stage beat lists from BM25",
              gain(mean[dual], mean["dual/rank-distillm-bm25"]), "negatives", "first stages",
              "dual, lists from (bi_encoder|splade)", both),
        Claim("Deep lists beat shallow ones (the deepest here against the shallowest)",
              gain(depth.loc[100, "colbert"], depth.loc[10, "colbert"]), "depth", "depths", ".*", ".*"),
        Claim("More training queries help (all against the fewest)",
              gain(*published("queries")["colbert"].iloc[[-1, 0]]), "depth", "queries", ".*", ".*"),
        Claim("RankNet and ADR-MSE do equally well",
              gain(loss.loc["RankNet"].mean(), loss.loc["ADR-MSE"].mean()), "loss", "losses",
              "ranknet", "adr_mse", equal=True),
        Claim("Out of domain, a student stays above BM25 (Vaswani)",
              gain(tirex.loc[dual, "vaswani"], tirex.loc["first stage (BM25)", "vaswani"]),
              "out_of_domain", "vaswani", "student", "first stage"),
        Claim("A student is up to 173 times faster than its teacher",
              f"{(faster := seconds['RankZephyr-7B'] / seconds['monoELECTRA-base']):.0f} times",
              "efficiency", measured=factor(times, faster)),
        Claim("and needs a 24th of its memory", "24 times", "efficiency",
              measured=factor(peaks[llm] / peaks[ours], 24)),
    ]  # fmt: skip


def ledger(profile: Profile) -> HTML:
    """The ledger beside a run, as a table; the run's students come from the store."""
    lines = "".join(_line(claim, profile) for claim in claims())
    names = ("The paper", "published", *(f"recorded, {x}" for x in PROFILES.values()), "this run")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return HTML(f'<table class="dataframe rdl-ledger">{table}</table>')


def verdict(values: pd.DataFrame, claim: Claim, bm25: float = 0.0) -> tuple[str, str]:
    """The verdict, and the difference with its interval, of a `pair_of` systems; BM25 is re-ranked."""
    if claim.equal:
        test = equivalence(values, "better", "worse", margin=_MARGIN)
        delta, low, high = test.delta, test.delta_low, test.delta_high
        yes, partly = test.equivalent and abs(delta) < _MARGIN, abs(delta) < _MARGIN
    else:
        delta, low, high = compare(values, "worse").loc["better", ["delta", "delta_low", "delta_high"]]
        yes, partly = low > 0, delta > 0
    word = "reproduced" if yes else "partly" if partly else "not reproduced"
    if claim.page != "out_of_domain" and values["worse"].mean() < bm25:
        word = "not comparable"
    return word, f"{delta:+.3f} ({low:+.3f} to {high:+.3f})"


def pair_of(values: pd.DataFrame, claim: Claim) -> pd.DataFrame | None:
    """The two systems of a claim as ``better`` and ``worse``, if both were run."""
    better = [label for label in values if re.fullmatch(claim.better, label)]
    worse = [label for label in values if re.fullmatch(claim.worse, label)]
    if not better or not worse or better[-1] == worse[0]:
        return None
    return pd.DataFrame({"better": values[better[-1]], "worse": values[worse[0]]})


def _line(claim: Claim, profile: Profile) -> str:
    found, here = [], ""
    for name in PROFILES:
        kept = recorded(claim.page, claim.part, name)
        pair = None if kept is None else pair_of(kept.values, claim)
        bm25 = recorded("effectiveness", "bm25", name).values["first stage"].mean()
        told = () if pair is None else (*verdict(pair, claim, bm25), as_seeds(len(kept.seeds)))
        found.append("; ".join(told) or (name == "trec-dl" and claim.measured) or "not attempted")
    if claim.part:
        given = {"profile": profile, **profile.notebooks.get(claim.page, {})}
        part = declared(claim.page, given).get(claim.part)
        pair = None if part is None else pair_of(measure(part).values, claim)
        here = "" if pair is None else verdict(pair, claim)[1]
    texts = (html.escape(text) for text in (claim.published, *found, here))
    texts = (re.sub("^(not )?(reproduced|partly|attempted|comparable)", r"<b>\g<0></b>", x) for x in texts)
    cells = "".join(f"<td>{x.replace(' (', '<br>(').replace('; ', '<br>')}</td>" for x in texts)
    text = f'<a href="{claim.page}.html">{html.escape(claim.text)}</a>'
    return f"<tr><td>{text}</td>{cells}</tr>"
