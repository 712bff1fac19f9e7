"""Without labels: an LLM writes queries for passages (`ask`), and grades pairs from 0 to 3 (`judge`).

Both work in a folder as `rdl_core.teachers.teach` does: every answer is kept as it comes, and nothing
is asked twice. ``report.json`` counts what came and what was left out.

Reference: Bonifacio et al. (InPars), SIGIR 2022; Dai et al. (Promptagator, whose filter is a round trip
through retrieval), ICLR 2023; Thomas et al., SIGIR 2024 (grades by LLMs).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rdl_core.config import AskConfig, EndpointConfig, JudgeConfig
from rdl_core.data.collections import fingerprint, load, read_corpus, read_judgments
from rdl_core.data.formats import check_run, read_candidates, read_qrels, write_requests
from rdl_core.evaluate import per_query
from rdl_core.files import partial, read_json, resumable, write_json
from rdl_core.teachers.answers import Answer, Question
from rdl_core.teachers.listwise import ask_all
from rdl_core.teachers.replay import AnswerLog
from rdl_core.teachers.teach import ANSWERS, Estimate, open_backend
from rdl_core.words import n_tokens_about, n_words

__all__ = ["agreement", "ask", "estimate", "judge"]

_ASK = (
    "Passage: {passage}\n\nWrite one query that a person would type into a search engine, and that "
    "this passage answers: a question or some words, at most {longest}, without quoting the passage. "
    "Reply with the query alone."
)
_GRADE = (
    "Query: {query}\n\nPassage: {passage}\n\nHow well does the passage answer the query? 3: fully, and "
    "it is about nothing else. 2: it answers, among other things or not quite clearly. 1: it is about "
    "the same matter, but does not answer. 0: it has nothing to do with it. Reply with one digit."
)
_GRADES = (0, 1, 2, 3)
_NAME = re.compile(r"^(?:an? )?(?:search )?(?:query|question)\s*:\s*", re.IGNORECASE)
_QUOTES = " \t\"'`*“”„«»"


def judge(config: JudgeConfig, folder: str | Path) -> dict:
    """Have an LLM grade candidates, best first down to a depth; gives the content of ``report.json``.

    The folder gets ``qrels.txt``. With human judgments, `agreement` is given, too. ValueError: nothing
    could be read, or files do not fit; EndpointError: no answer.
    """
    corpus, questions = _pairs(config)
    human = read_judgments(config.human) if config.human else None
    runs = {Path(x).stem: read_candidates(x).eval("score = -rank") for x in config.runs}
    identity = {
        "asked": "grades", "depth": config.depth, "max_retries": config.max_retries,
        "data": fingerprint(corpus.candidates), "teacher": config.backend.name,
    }  # fmt: skip
    with resumable(Path(folder), identity, brought=ANSWERS) as work:
        if work.manifest is None:
            answers = _answers(config, work.folder, questions)
            rows = [(*q.query_id.split("\n"), x) for q, (_, x) in zip(questions, answers, strict=True)]
            known = [f"{q} 0 {d} {grade}\n" for q, d, grade in rows if grade is not None]
            with partial(work.folder / "qrels.txt") as beside:
                beside.write_text("".join(known))
            counts = Counter(str(x) for *_, x in rows if x is not None)
            report = _report(config, questions, answers) | {"grades": dict(sorted(counts.items()))}
            write_json(work.folder / "report.json", report)
            work.finish()
        report = read_json(work.folder / "report.json")
    if human is not None:
        qrels = read_qrels(Path(folder) / "qrels.txt")
        report["agreement"] = agreement(qrels, human, runs, config.measure)
    return report


def agreement(
    qrels: pd.DataFrame, human: pd.DataFrame, runs: dict[str, pd.DataFrame], measure: str = "nDCG@10"
) -> dict:
    """How far grades agree with human ones: ``n_pairs`` that both have, Cohen's ``kappa`` of the grades
    and of relevant (1 or more) or not, and Kendall's ``tau`` of the order in which they put `runs` by
    the mean of a measure over the queries that both judge (None for fewer than two).
    """
    from scipy.stats import kendalltau
    from sklearn.metrics import cohen_kappa_score

    both = qrels.merge(human, on=["query_id", "doc_id"], suffixes=("", "_human"))
    own, theirs = both["relevance"], both["relevance_human"].clip(0, max(_GRADES))
    told = {"n_pairs": len(both), "kappa": None, "kappa_relevant": None, "tau": None}
    if len(both):
        told["kappa"] = float(cohen_kappa_score(own, theirs))
        told["kappa_relevant"] = float(cohen_kappa_score(own > 0, theirs > 0))
    if len(runs) > 1 and len(both):
        means = [[per_query(x[x["query_id"].isin(both["query_id"])], run, measure)[measure].mean()
                  for run in runs.values()] for x in (qrels, human)]  # fmt: skip
        told["tau"] = float(kendalltau(*means).statistic)
    return told


def ask(config: AskConfig, folder: str | Path) -> dict:
    """Have an LLM write a query for each of some passages; gives the content of ``report.json``.

    Left out are queries that are no query (none, or too long), that another passage got, whose passage
    BM25 does not find among its first `found_within`, and, with `least_grade`, that the LLM itself
    grades below it for their passage. The folder gets ``queries.jsonl``, ``qrels/train.tsv``, and
    ``requests.jsonl``: BM25's candidates with their texts, for `rdl teach`.
    """
    from rdl_core.data.retrieval import bm25  # imports torch

    collection, questions = load(config.collection), _passages(config)
    identity = {
        "asked": "queries", "n_passages": config.n_passages, "seed": config.seed,
        "longest": config.longest, "found_within": config.found_within, "depth": config.depth,
        "least_grade": config.least_grade, "max_retries": config.max_retries,
        "data": collection.passages_fingerprint, "teacher": config.backend.name,
    }  # fmt: skip
    with resumable(Path(folder), identity, brought=ANSWERS) as work:
        if work.manifest is not None:
            return read_json(work.folder / "report.json")
        answers = _answers(config, work.folder, questions)
        report = _report(config, questions, answers)
        both = zip(questions, answers, strict=True)
        rows = [(f"{q.query_id}.asked", x, q.query_id) for q, (_, x) in both]
        found = pd.DataFrame(rows, columns=["query_id", "query", "doc_id"]).dropna()
        kept = found.drop_duplicates("query", keep=False)
        report["n_several"] = len(found) - len(kept)
        passages = collection.passages
        candidates = bm25(kept, passages, depth=max(config.depth, config.found_within))
        own = candidates.merge(kept[["query_id", "doc_id"]])
        own = own[own["rank"] <= config.found_within]["query_id"]
        report["n_not_found"] = len(kept) - len(own)
        kept = kept[kept["query_id"].isin(own)]
        if config.least_grade:
            texts = passages.set_index("doc_id")["text"]
            graded = [_grading(x.query_id, x.query, texts[x.doc_id]) for x in kept.itertuples()]
            grades = _answers(config, work.folder, graded)
            good = [x is not None and x >= config.least_grade for _, x in grades]
            report["n_not_answered"] = len(good) - sum(good)
            kept = kept[np.array(good, dtype=bool)]
        if kept.empty:
            raise ValueError(f"{folder}: no query is left of {len(questions)}: {report}: see {ANSWERS}")
        report["n_queries"] = len(kept)
        lists = candidates[candidates["rank"] <= config.depth].merge(kept[["query_id", "query"]])
        write_requests(lists.merge(passages), work.folder / "requests.jsonl")
        kept[["query_id", "query"]].set_axis(["_id", "text"], axis=1).to_json(
            work.folder / "queries.jsonl", orient="records", lines=True, force_ascii=False
        )
        (work.folder / "qrels").mkdir(exist_ok=True)
        rows = kept[["query_id", "doc_id"]].set_axis(["query-id", "corpus-id"], axis=1)
        rows.assign(score=1).to_csv(work.folder / "qrels" / "train.tsv", sep="\t", index=False)
        write_json(work.folder / "report.json", report)
        work.finish()
    return report


def estimate(config: AskConfig | JudgeConfig, folder: str | Path) -> Estimate:
    """Count questions, tokens and cost of `ask` or `judge`; asks nothing and writes nothing.

    Of `ask`, without the grades that ``least_grade`` asks for.
    """
    questions = _passages(config) if isinstance(config, AskConfig) else _pairs(config)[1]
    log = AnswerLog(Path(folder) / ANSWERS, teacher=config.backend.name)
    new = [x for x in questions if log.get(x) is None]
    prompts = sum(n_tokens_about(x.prompt(max_words=config.backend.max_words)) for x in new)
    written = sum(n_tokens_about(x.longest_answer) for x in new)
    paid = isinstance(config.backend, EndpointConfig)
    return Estimate(
        n_queries=len(questions), n_windows=len(questions), n_answered=len(questions) - len(new),
        input_tokens=prompts, output_tokens=written,
        usd=config.backend.usd(prompts, written) if paid else None,
    )  # fmt: skip


def _passages(config: AskConfig) -> list[Question]:
    """A question for each of some passages, drawn by their ids."""
    passages = load(config.collection).passages
    if (n := config.n_passages) < len(passages):
        passages = passages.sample(n, random_state=config.seed).sort_index()
    prompt, longest = _ASK.replace("{longest}", f"{config.longest} words"), "word " * config.longest
    return [
        Question(query_id=doc_id, template=prompt, passages=(text,), longest_answer=longest,
                 read=lambda text: _query(text, config.longest))
        for doc_id, text in passages.itertuples(index=False)
    ]  # fmt: skip


def _pairs(config: JudgeConfig) -> tuple[Any, list[Question]]:
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    check_run(corpus.candidates, "judge")
    candidates = corpus.candidates[corpus.candidates["rank"] <= config.depth]
    corpus = replace(corpus, candidates=candidates)
    queries, texts = (
        dict(zip(ids, of.of(ids), strict=True))
        for ids, of in (
            (corpus.ids("query_id"), corpus.queries),
            (corpus.ids("doc_id"), corpus.passages),
        )
    )
    pairs = candidates[["query_id", "doc_id"]].itertuples(index=False)
    return corpus, [_grading(f"{q}\n{d}", queries[q], texts[d]) for q, d in pairs]


def _grading(name: str, query: str, passage: str) -> Question:
    own = {"query": query, "passages": (passage,), "longest_answer": "3", "read": _grade}
    return Question(query_id=name, template=_GRADE, **own)


def _grade(text: str) -> int | None:
    """The last digit from 0 to 3 that stands alone."""
    words = "".join(x if x.isalnum() or x == "." else " " for x in text).split()
    grades = [int(x) for x in (word.strip(".") for word in words) if x in map(str, _GRADES)]
    return grades[-1] if grades else None


def _query(text: str, longest: int) -> str | None:
    """The first line, without quotes and a name before it; None if it is no query."""
    line = next((x for x in text.splitlines() if x.strip()), "").strip()
    line = _NAME.sub("", line.strip(_QUOTES)).strip(_QUOTES)
    return line if 1 < n_words(line) <= longest + 3 else None


def _answers(
    config: AskConfig | JudgeConfig, folder: Path, questions: Sequence[Question]
) -> list[tuple[Answer, Any]]:
    """Each answer and what it says, perhaps None; what says nothing is asked again."""
    log, backend = AnswerLog(folder / ANSWERS, teacher=config.backend.name), None
    answers: dict[int, tuple[Answer, Any]] = {}
    for attempt in range(1 + config.max_retries):
        left = [i for i in range(len(questions)) if i not in answers or answers[i][1] is None]
        if not left:
            break
        backend = backend or open_backend(config.backend)
        some = [replace(questions[i], attempt=attempt) for i in left]
        for i, question, answer in zip(left, some, ask_all(some, backend, log), strict=True):
            answers[i] = answer, question.value(answer)
    if questions and all(value is None for _, value in answers.values()):
        why = answers[0][0].why or repr(answers[0][0].text)[:100]
        raise ValueError(f"{folder}: no answer could be read, the first: {why}: try another model")
    return [answers[i] for i in range(len(questions))]


def _report(
    config: AskConfig | JudgeConfig, questions: Sequence[Question],
    answers: Sequence[tuple[Answer, Any]],
) -> dict:  # fmt: skip
    """Counts and cost; tokens are None where a server did not count them."""
    counts = [(x.input_tokens, x.output_tokens) for x, _ in answers]
    tokens = [None if None in column else sum(column) for column in zip(*counts, strict=True)]
    why = Counter(x.why or "not understood" for x, value in answers if value is None)
    paid = isinstance(config.backend, EndpointConfig) and None not in tokens
    return {
        "n_asked": len(questions), "n_unusable": why.total(), "why": dict(why.most_common(5)),
        "input_tokens": tokens[0], "output_tokens": tokens[1],
        "usd": config.backend.usd(*tokens) if paid else None,
    }  # fmt: skip
