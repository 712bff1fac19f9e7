"""The claim ledger: each claim of the paper, and what a run of the study says of it.

A verdict is read off an interval. Of a claim that one system is better: *same direction* or
*opposite direction* where the 95 % interval of the difference excludes 0, *not separable* where it
does not. Of a claim that two are equal: *equal* where the 90 % interval lies within 0.02 (TOST),
*not shown* where it does not. It speaks of the run's own data and teacher; only a run on the paper's
data bears on the paper.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML

from rdl_core.evaluate import equivalence
from rdl_core.study.profile import Profile
from rdl_core.study.tables import compare, differences, published

__all__ = ["Claim", "ledger", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper that a difference between two systems can speak to."""

    text: str
    """The claim, in our words."""
    published: str
    """What the paper reports for it."""
    page: str
    """Page of the book that treats it."""
    better: dict | None = None
    """Arguments of `Profile.student` for the system that should be better; None: not attempted."""
    worse: dict | None = None
    """And for the other."""
    equal: bool = False
    """Whether the claim is that neither is better."""


def ledger(profile: Profile) -> HTML:
    """The ledger of a run, as a table.

    Args:
        profile: The run's profile. Students that its pages have trained come from the store.

    >>> "not attempted" in ledger(profile).data
    True
    """
    profile = profile.ablation
    rows = [(claim, *_seen(claim, profile)) for claim in _claims(profile)]
    lines = "".join(
        f'<tr><td>{html.escape(claim.text)}</td><td>{html.escape(claim.published)}</td>'
        f"<td>{html.escape(seen)}</td><td><strong>{html.escape(said)}</strong></td>"
        f'<td><a href="{claim.page}.html">{claim.page}</a></td></tr>'
        for claim, seen, said in rows
    )
    heads = "".join(
        f"<th>{head}</th>" for head in ("The paper", "published", "this run", "verdict", "page")
    )
    return HTML(
        f'<table class="dataframe rdl-ledger"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def verdict(row: pd.Series) -> str:
    """What a difference with its interval says of a claim that it is positive.

    >>> verdict(pd.Series({"delta_low": -0.01, "delta_high": 0.03}))
    'not separable'
    """
    if row["delta_low"] > 0:
        return "same direction"
    return "opposite direction" if row["delta_high"] < 0 else "not separable"


def _seen(claim: Claim, profile: Profile) -> tuple[str, str]:
    if claim.better is None:
        return "", "not attempted"
    systems = {"better": profile.student(**claim.better), "worse": profile.student(**claim.worse)}
    results = compare(profile, systems)
    row = differences(results, "worse").loc["better"]
    if claim.equal:
        test = equivalence(results.values, "better", "worse")
        said = f"equal within {test.margin}" if test.equivalent else "not shown"
        return f"{test.delta:+.3f} ({test.delta_low:+.3f} to {test.delta_high:+.3f})", said
    interval = f"{row['delta_low']:+.3f} to {row['delta_high']:+.3f}"
    return f"{row['delta']:+.3f} ({interval})", verdict(row)


def _claims(profile: Profile) -> list[Claim]:
    trec, depth, loss = published("trec_dl"), published("depth"), published("loss")
    efficiency = published("efficiency")
    mean = trec.mean(axis=1)
    colbert, bm25 = mean["dual/rank-distillm-colbert"], mean["dual/rank-distillm-bm25"]
    single = mean["single/rank-distillm-colbert"]
    depths = profile.notebooks["depth"]["depths"]
    ratio = (
        efficiency.loc["RankZephyr-7B", "seconds_per_query"]
        / efficiency.loc["monoELECTRA-base", "seconds_per_query"]
    )
    size = profile.stage2.training.list_size * profile.stage2.training.queries_per_step

    def at(depth: int) -> dict:
        return {"depth": depth, "list_size": depth, "queries_per_step": max(1, size // depth)}

    return [
        Claim(
            text="The second stage, on a teacher's order, improves on contrastive training alone",
            published=f"{mean['dual/rank-distillm-colbert'] - mean['monoELECTRA-base, stage 1 only']:+.3f}",
            page="effectiveness", better={}, worse={"stages": "first"},
        ),
        Claim(
            text="Training in two stages beats the listwise stage alone",
            published=f"{colbert - single:+.3f}", page="negatives",
            better={}, worse={"stages": "second"},
        ),
        Claim(
            text="Lists from a neural first stage beat lists from BM25",
            published=f"{colbert - bm25:+.3f}", page="negatives",
            better={"first_stage": "bi_encoder"}, worse={"first_stage": "bm25"},
        ),
        Claim(
            text=f"Deep lists beat shallow ones (published 100 against 10; here {depths[-1]} "
            f"against {depths[0]})",
            published=f"{depth.loc[100, 'colbert'] - depth.loc[10, 'colbert']:+.3f}", page="depth",
            better=at(depths[-1]), worse=at(depths[0]),
        ),
        Claim(
            text="RankNet and ADR-MSE do equally well",
            published=f"{(loss.loc['RankNet'] - loss.loc['ADR-MSE']).mean():+.3f}", page="loss",
            better={"loss": "ranknet"}, worse={"loss": "adr_mse"}, equal=True,
        ),
        Claim(
            text="A student is up to 173 times faster than its teacher",
            published=f"{ratio:.0f} times", page="efficiency",
        ),
        Claim(text="and needs a 24th of its memory", published="24 times", page="efficiency"),
    ]
