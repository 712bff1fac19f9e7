"""Without labels: an LLM writes queries for passages (`ask`), and grades pairs from 0 to 3 (`judge`).

Both work in a folder as `rdl_tools.teach` does; ``report.json`` counts what was left out.

Reference: Bonifacio et al. (InPars), SIGIR 2022; Dai et al. (Promptagator, whose filter is a round trip
through retrieval), ICLR 2023; Thomas et al., SIGIR 2024 (grades by LLMs).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rdl_core.data.collections import fingerprint, load, read_corpus, read_judgments
from rdl_core.data.formats import check_run, read_candidates, read_qrels, write_requests
from rdl_core.evaluate import per_query
from rdl_core.files import resumable, write_json
from rdl_core.teachers.answers import Answer, without_thoughts
from rdl_core.teachers.listwise import ask_all
from rdl_core.teachers.replay import AnswerLog
from rdl_core.words import first_words, n_tokens_about, n_words
from rdl_tools.config import AskConfig, JudgeConfig
from rdl_tools.teach import ANSWERS, Estimate, finished_report, open_backend, usd_of

__all__ = ["Question", "agreement", "ask", "estimate", "judge"]

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a passage, which a backend answers as it does a window."""

    query_id: str
    template: str  # with {passage} and perhaps {query}
    passages: tuple[str]  # one
    longest_answer: str  # a text as long
    read: Callable[[str], Any]  # what an answer's text says; None: nothing
    query: str = ""
    attempt: int = 0

    wanted, pass_number, start = "Answer", 1, 0  # as a window has them

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """In the form of a window's."""
        content = json.dumps([self.template, self.query, self.passages])
        return self.query_id, 1, 0, self.attempt, hashlib.sha256(content.encode()).hexdigest()[:16]

    def prompt(self, *, max_words: int, letters: bool = False) -> str:
        """The question as text, each text of it in one line."""
        query, passage = (" ".join(text.split()) for text in (self.query, *self.passages))
        return self.template.format(query=query, passage=first_words(passage, max_words))

    def value(self, answer: Answer) -> Any:
        """What the answer says, thoughts left out."""
        return self.read(without_thoughts(answer.text or ""))

    def usable(self, answer: Answer) -> bool:
        """Whether it says anything."""
        return self.value(answer) is not None


def judge(config: JudgeConfig, folder: str | Path) -> dict:
    """Have an LLM grade candidates, best first down to a depth; gives the content of ``report.json``.

    The folder gets ``qrels.txt``. With human judgments, `agreement` is given, too.
    """
    candidates, questions = _pairs(config)
    human = read_judgments(config.human) if config.human else None
    runs = {Path(x).stem: read_candidates(x).eval("score = -rank") for x in config.runs}
    identity = {"asked": "grades", "depth": config.depth, "max_retries": config.max_retries}
    identity |= {"data": fingerprint(candidates), "teacher": config.backend.name}
    with resumable(Path(folder), identity, brought=ANSWERS) as work:
        if not (report := finished_report(work, config.backend)):
            answers, grades = _answers(config, work.folder, questions)
            pairs = zip(candidates["query_id"], candidates["doc_id"], grades, strict=True)
            lines = [f"{q} 0 {d} {grade}\n" for q, d, grade in pairs if grade is not None]
            (work.folder / "qrels.txt").write_text("".join(lines))
            report = {"n_asked": len(grades), "n_unusable": grades.count(None)}
            report["grades"] = {str(x): grades.count(x) for x in _GRADES}
            report |= _report(config, answers)
            write_json(work.folder / "report.json", report)
            work.finish()
    if human is not None:
        qrels = read_qrels(work.folder / "qrels.txt")
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
    grades, human_grades = both["relevance"], both["relevance_human"].clip(0, max(_GRADES))
    report = {"n_pairs": len(both), "kappa": None, "kappa_relevant": None, "tau": None}
    if len(both):
        report["kappa"] = float(cohen_kappa_score(grades, human_grades))
        report["kappa_relevant"] = float(cohen_kappa_score(grades > 0, human_grades > 0))
    if len(runs) > 1 and len(both):
        means = [[per_query(x[x["query_id"].isin(both["query_id"])], run, measure)[measure].mean()
                  for run in runs.values()] for x in (qrels, human)]  # fmt: skip
        report["tau"] = float(kendalltau(*means).statistic)
    return report


def ask(config: AskConfig, folder: str | Path) -> dict:
    """Have an LLM write a query for each of some passages; gives the content of ``report.json``.

    Left out are queries that are no query (none, or too long), that another passage got, whose passage
    BM25 does not find among its first `found_within`, and, with `least_grade`, that the LLM itself
    grades below it for their passage. The folder gets ``queries.jsonl``, ``qrels/train.tsv``, and
    ``requests.jsonl``: BM25's candidates with their texts, for `rdl teach`.
    """
    from rdl_core.data.retrieval import bm25  # imports torch

    collection, questions = load(config.collection), _passages(config)
    identity = {name: x for name, x in vars(config).items() if name not in ("collection", "backend")}
    identity |= {"data": collection.passages_fingerprint, "teacher": config.backend.name}
    with resumable(Path(folder), identity | {"asked": "queries"}, brought=ANSWERS) as work:
        if report := finished_report(work, config.backend):
            return report
        answers, written = _answers(config, work.folder, questions)
        report = {"n_asked": len(written), "n_unusable": written.count(None)}
        readable = pd.DataFrame({"doc_id": [x.query_id for x in questions], "query": written}).dropna()
        unique = readable.drop_duplicates("query", keep=False)
        unique = unique.assign(query_id=unique["doc_id"] + ".asked")
        report["n_several"] = len(readable) - len(unique)
        passages = collection.passages
        candidates = bm25(unique, passages, depth=max(config.depth, config.found_within))
        queries = unique.merge(candidates)  # each with the rank and score of its own passage
        queries = queries[queries["rank"] <= config.found_within]
        report["n_not_found"] = len(unique) - len(queries)
        if config.least_grade and len(queries):
            texts = queries.merge(passages).itertuples()
            graded = [_grading(x.query_id, x.query, x.text) for x in texts]
            more_answers, grades = _answers(config, work.folder, graded)
            enough = np.array(grades, dtype=float) >= config.least_grade  # None is NaN
            report["n_not_answered"] = int((~enough).sum())
            queries, answers = queries[enough], [*answers, *more_answers]
        report |= _report(config, answers)
        if queries.empty:
            raise ValueError(f"{folder}: no query is left of {len(questions)}: {report}: see {ANSWERS}")
        report["n_queries"] = len(queries)
        lists = candidates[candidates["rank"] <= config.depth].merge(queries[["query_id", "query"]])
        write_requests(lists.merge(passages), work.folder / "requests.jsonl")
        texts = queries[["query_id", "query"]].set_axis(["_id", "text"], axis=1)
        texts.to_json(work.folder / "queries.jsonl", orient="records", lines=True, force_ascii=False)
        (work.folder / "qrels").mkdir(exist_ok=True)
        judgments = queries[["query_id", "doc_id"]].set_axis(["query-id", "corpus-id"], axis=1)
        judgments.assign(score=1).to_csv(work.folder / "qrels" / "train.tsv", sep="\t", index=False)
        write_json(work.folder / "report.json", report)
        work.finish()
    return report


def estimate(config: AskConfig | JudgeConfig, folder: str | Path) -> Estimate:
    """Questions, tokens and cost of `judge` or, but for its grades, `ask`; asks and writes nothing."""
    questions = _passages(config) if isinstance(config, AskConfig) else _pairs(config)[1]
    log = AnswerLog(Path(folder) / ANSWERS, teacher=config.backend.name)
    new = [x for x in questions if log.get(x) is None]
    prompts = sum(n_tokens_about(x.prompt(max_words=config.backend.max_words)) for x in new)
    written = sum(n_tokens_about(x.longest_answer) for x in new)
    return Estimate(
        n_queries=len(questions), n_windows=len(questions), n_answered=len(questions) - len(new),
        input_tokens=prompts, output_tokens=written, usd=usd_of(config.backend, prompts, written),
    )  # fmt: skip


def _passages(config: AskConfig) -> list[Question]:
    """A question for each of some passages, drawn by their ids."""
    passages = load(config.collection).passages
    if (n := config.n_passages) < len(passages):
        passages = passages.sample(n, random_state=config.seed).sort_index()
    own = {"template": _ASK.replace("{longest}", f"{config.longest} words")}
    own |= {"longest_answer": "word " * config.longest, "read": lambda x: _query(x, config.longest)}
    return [Question(query_id=key, passages=(text,), **own) for key, text in passages.values]


def _pairs(config: JudgeConfig) -> tuple[pd.DataFrame, list[Question]]:
    """Candidates down to the depth, and a question for each."""
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    check_run(corpus.candidates, "judge")
    candidates = corpus.candidates[corpus.candidates["rank"] <= config.depth]
    texts = replace(corpus, candidates=candidates).with_texts().itertuples()
    return candidates, [_grading(f"{x.query_id} {x.doc_id}", x.query, x.text) for x in texts]


def _grading(name: str, query: str, passage: str) -> Question:
    texts = {"query": query, "passages": (passage,), "longest_answer": "3"}
    return Question(query_id=name, template=_GRADE, read=_grade, **texts)


def _grade(text: str) -> int | None:
    """The last digit from 0 to 3 that stands alone."""
    grades = re.findall(r"(?<![^\W_])(?<![^\W_]\.)[0-3](?!\.?[^\W_])", text)
    return int(grades[-1]) if grades else None


def _query(text: str, longest: int) -> str | None:
    """The first line, without quotes and a name before it; None if it is no query."""
    line = next((x for x in text.splitlines() if x.strip()), "").strip()
    line = _NAME.sub("", line.strip(_QUOTES)).strip(_QUOTES)
    return line if 1 < n_words(line) <= longest + 3 else None


def _answers(
    config: AskConfig | JudgeConfig, folder: Path, questions: Sequence[Question]
) -> tuple[list[Answer], list[Any]]:
    """All answers, and what the last one to each question says: perhaps None, though asked again."""
    log = AnswerLog(folder / ANSWERS, teacher=config.backend.name)
    answers, values, backend = [], dict.fromkeys(range(len(questions))), open_backend(config.backend)
    for attempt in range(1 + config.max_retries):
        asked = {i: replace(questions[i], attempt=attempt) for i in values if values[i] is None}
        last = ask_all([*asked.values()], backend, log)
        answers += last
        values |= {i: asked[i].value(answer) for i, answer in zip(asked, last, strict=True)}
    if set(values.values()) == {None}:
        why = last[0].why or repr(last[0].text)[:100]
        raise ValueError(f"{folder}: no answer could be read, the first: {why}: try another model")
    return answers, [*values.values()]


def _report(config: AskConfig | JudgeConfig, answers: Sequence[Answer]) -> dict:
    """Number and cost of all answers; None where a server did not count tokens, or without prices."""
    why = dict(Counter(x.why for x in answers if x.why).most_common(5))
    report = {"n_answers": len(answers), "why": why}
    for name in ("input_tokens", "output_tokens"):
        column = [getattr(answer, name) for answer in answers]
        report[name] = None if None in column else sum(column)
    return report | {"usd": usd_of(config.backend, report["input_tokens"], report["output_tokens"])}
