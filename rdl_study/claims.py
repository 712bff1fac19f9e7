"""The claim ledger: each claim of the paper, what our recorded run found, and the reader's own.

The verdict is read off the recorded run, the one on real data. Of a claim that one system is better:
*reproduced* where the 95 % interval of the difference lies above 0, *partly* where the difference is
positive and its interval holds 0, else *not reproduced*. Of a claim that two are equal: *reproduced*
where they are equivalent within 0.02 (TOST, alpha .05), *partly* where the difference is smaller than
that and this is not shown, else *not reproduced*. What nobody ran is *not attempted*.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML

from rdl_core.evaluate import compare as compare_values
from rdl_core.evaluate import equivalence
from rdl_study import recorded
from rdl_study.parameters import check_parameters
from rdl_study.profile import Profile
from rdl_study.tables import as_seeds, compare, published

__all__ = ["Claim", "claims", "ledger", "pair_of", "verdict"]

_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper that a difference between two systems can speak to."""

    text: str
    """The claim, in our words."""
    published: str
    """What the paper reports for it."""
    page: str
    """Page of the book that treats it."""
    part: str = ""
    """Its part that has both systems; empty: not attempted."""
    better: Callable[[str], bool] = bool
    """Whether a label names the system that should be better; the last that does is meant."""
    worse: Callable[[str], bool] = bool
    """Whether a label names the other; the first that does is meant."""
    equal: bool = False
    """Whether the claim is that neither is better."""


def ledger(profile: Profile) -> HTML:
    """The ledger beside a run, as a table.

    Args:
        profile: The run's profile. Students that its pages have trained come from the store.

    >>> "not attempted" in (shown := ledger(profile).data), "2 seeds" in shown
    (True, True)
    """
    lines = "".join(_line(claim, profile) for claim in claims())
    names = ("The paper", "published", "recorded (TREC DL)", "verdict", "this run")
    heads = "".join(f"<th>{name}</th>" for name in names)
    return HTML(
        f'<table class="dataframe rdl-ledger"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def verdict(values: pd.DataFrame, claim: Claim) -> tuple[str, str]:
    """What the difference of two systems says of a claim, and the difference with its interval.

    Args:
        values: ``better`` and ``worse``, a row for each query.
        claim: Whether it is one of equality.

    >>> values = pd.DataFrame({"worse": [0.1, 0.2, 0.3], "better": [0.4, 0.6, 0.7]})
    >>> claim = Claim(text="", published="", page="")
    >>> verdict(values.rename(str), claim)
    ('reproduced', '+0.367 (+0.300 to +0.400)')
    """
    if claim.equal:
        test = equivalence(values, "better", "worse", margin=_MARGIN)
        shown = f"{test.delta:+.3f} ({test.delta_low:+.3f} to {test.delta_high:+.3f})"
        said = "reproduced" if test.equivalent else "partly"
        return said if abs(test.delta) < _MARGIN else "not reproduced", shown
    row = compare_values(values, "worse").loc["better"]
    shown = f"{row['delta']:+.3f} ({row['delta_low']:+.3f} to {row['delta_high']:+.3f})"
    if row["delta_low"] > 0:
        return "reproduced", shown
    return "partly" if row["delta"] > 0 else "not reproduced", shown


def _line(claim: Claim, profile: Profile) -> str:
    said, there = "not attempted", ""
    if claim.part and (kept := recorded.read(claim.page, claim.part)):
        pair = pair_of(kept.values, claim)
        if pair is not None:
            said, shown = verdict(pair, claim)
            there = f"{shown}; {as_seeds(len(kept.seeds))}"
    shown = (claim.published, there, said, _here(claim, profile))
    lines = (html.escape(one).replace(" (", "<br>(").replace("; ", "<br>") for one in shown)
    cells = "".join(f"<td>{one}</td>" for one in lines)
    text = f'<a href="{claim.page}.html">{html.escape(claim.text)}</a>'
    return f"<tr><td>{text}</td>{cells}</tr>"


def _here(claim: Claim, profile: Profile) -> str:
    if not claim.part:
        return ""
    given = check_parameters(claim.page, profile.notebooks.get(claim.page, {}))
    part = given.parts_at(profile).get(claim.part)
    if part is None:
        return ""
    pair = pair_of(compare(part).values, claim)
    return "" if pair is None else verdict(pair, claim)[1]


def pair_of(values: pd.DataFrame, claim: Claim) -> pd.DataFrame | None:
    """The two systems that a claim speaks of, ``better`` and ``worse``, where both were run.

    Args:
        values: A column per system, a row per query.
        claim: One of `claims`.

    >>> pair_of(pd.DataFrame({"BM25": [0.4]}), claims()[0]) is None
    True
    """
    better = [label for label in values if claim.better(label)]
    worse = [label for label in values if claim.worse(label)]
    if not better or not worse or better[-1] == worse[0]:
        return None
    return pd.DataFrame({"better": values[better[-1]], "worse": values[worse[0]]})


def _is(*labels: str) -> Callable[[str], bool]:
    return lambda label: label in labels


def _starts(prefix: str) -> Callable[[str], bool]:
    return lambda label: label.startswith(prefix)


def claims() -> list[Claim]:
    """The paper's claims, with what was published for each.

    >>> claims()[0].text
    "A student matches its LLM teacher on BM25's candidates"
    """
    trec, depth, loss = published("trec_dl"), published("depth"), published("loss")
    efficiency, tirex = published("efficiency"), published("tirex")
    mean = trec.mean(axis=1)
    bm25 = trec.filter(like="bm25/", axis="columns").mean(axis=1)
    dual = "dual/rank-distillm-colbert"
    ratio = (
        efficiency.loc["RankZephyr-7B", "seconds_per_query"]
        / efficiency.loc["monoELECTRA-base", "seconds_per_query"]
    )
    return [
        Claim(
            text="A student matches its LLM teacher on BM25's candidates",
            published=f"{bm25[dual] - bm25['RankZephyr']:+.3f}", page="effectiveness", part="bm25",
            better=_is("student"), worse=_starts("teacher ("), equal=True,
        ),
        Claim(
            text="The second stage, on a teacher's order, improves on contrastive training alone",
            published=f"{mean[dual] - mean['monoELECTRA-base, stage 1 only']:+.3f}",
            page="effectiveness", part="bm25", better=_is("student"),
            worse=_is("student after stage 1"),
        ),
        Claim(
            text="Training in two stages beats the listwise stage alone",
            published=f"{mean[dual] - mean['single/rank-distillm-colbert']:+.3f}",
            page="negatives", part="first stages", better=_is("dual, lists from bm25"),
            worse=_is("single, lists from bm25"),
        ),
        Claim(
            text="Lists from a neural first stage beat lists from BM25",
            published=f"{mean[dual] - mean['dual/rank-distillm-bm25']:+.3f}",
            page="negatives", part="first stages", worse=_is("dual, lists from bm25"),
            better=_is("dual, lists from bi_encoder", "dual, lists from splade"),
        ),
        Claim(
            text="Deep lists beat shallow ones (the deepest here against the shallowest)",
            published=f"{depth.loc[100, 'colbert'] - depth.loc[10, 'colbert']:+.3f}",
            page="depth", part="depths",
        ),
        Claim(
            text="More training queries help (all against the fewest)",
            published=f"{published('queries')['colbert'].diff().sum():+.3f}",
            page="depth", part="queries",
        ),
        Claim(
            text="RankNet and ADR-MSE do equally well",
            published=f"{(loss.loc['RankNet'] - loss.loc['ADR-MSE']).mean():+.3f}",
            page="loss", part="losses", better=_is("ranknet"), worse=_is("adr_mse"), equal=True,
        ),
        Claim(
            text="Out of domain, a student stays above BM25 (Vaswani)",
            published=f"{tirex.loc[dual, 'vaswani'] - tirex.loc['first stage (BM25)', 'vaswani']:+.3f}",
            page="out_of_domain", part="vaswani", better=_is("student"), worse=_is("first stage"),
        ),
        Claim(
            text="A student is up to 173 times faster than its teacher",
            published=f"{ratio:.0f} times", page="efficiency",
        ),
        Claim(text="and needs a 24th of its memory", published="24 times", page="efficiency"),
    ]
