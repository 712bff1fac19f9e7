"""Pointwise teachers: a causal language model scores each passage for a query and writes nothing.

- ``query_likelihood``: log-probability of the query behind the passage (Sachan et al., EMNLP 2022).
- ``yes_no``: log-odds of "yes" against "no" as the next word (Nogueira et al., EMNLP Findings 2020;
  Zhuang et al., NAACL 2024).

Lists share passages: those of 5,720 queries have 8,776 of them, each 28 times. So what is
asked is a passage with all its queries, and the passage is read once: in one row of tokens, a query
sees the passage and itself, at the positions that it would have alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor

from rdl_core.config import PROMPTS, LocalConfig
from rdl_core.files import checked
from rdl_core.teachers.answers import Answer
from rdl_core.teachers.encoders import add_teacher_rank
from rdl_core.teachers.listwise import ask_all, check_candidates
from rdl_core.teachers.replay import AnswerLog
from rdl_core.words import first_words

__all__ = ["Group", "PointwiseLLM", "Scorer", "plan_groups", "score_lists"]

_MOST_QUERIES = 32  # of a group: a row's attention grows with the square of its length
_ROW_TOKENS = 1024  # of short groups that share a row
_MULTIPLE = 64  # rows are filled up to it: kernels of the CPU are made, and kept, for each length
_LABELS = [[f"{start}{word}" for word in words for start in ("", " ")]
           for words in (("yes", "Yes"), ("no", "No"))]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """A passage and the queries that it is scored for."""

    doc_id: str
    passage: str
    queries: tuple[str, ...]
    rows: tuple[int, ...]  # of the candidates, one for each query

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """In the form of a window's: id, pass, start, attempt, 16 digits of a SHA-256 of all texts."""
        content = json.dumps([self.passage, self.queries])
        return self.doc_id, 1, 0, 0, hashlib.sha256(content.encode()).hexdigest()[:16]


class Scorer(Protocol):
    """Who scores groups."""

    def ask(self, groups: Sequence[Group]) -> Iterator[tuple[int, Answer]]:
        """Score each group once; yield its number and its scores as soon as they are known."""


def plan_groups(candidates: pd.DataFrame) -> list[Group]:
    """All candidates by passage, at most 32 queries in a group."""
    groups = []
    for doc_id, rows in candidates.reset_index(drop=True).groupby("doc_id", sort=False):
        for start in range(0, len(rows), _MOST_QUERIES):
            part = rows.iloc[start : start + _MOST_QUERIES]
            texts, numbers = tuple(part["query"]), tuple(part.index)
            passage = part["text"].iloc[0]
            groups.append(Group(doc_id=doc_id, passage=passage, queries=texts, rows=numbers))
    return groups


def score_lists(
    candidates: pd.DataFrame, scorer: Scorer, *, answers: AnswerLog | None = None,
    on_answer: Callable[[Group, Answer], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Rank each query's candidates by a score for each.

    Args:
        candidates: As for `rdl_core.teachers.listwise.rank_lists`.
        scorer: Who scores.
        answers: Where scores are looked up before asking, and stored as they come.
        on_answer: Called with each new answer, after it is stored.

    Returns:
        The candidates with ``teacher_score`` and ``teacher_rank``, 1..n in each query, equal scores by
        the first stage's rank; and a report, a row per query: ``n_windows`` (its passages),
        ``input_tokens`` (of prompts of their own), ``output_tokens`` (0).

    Raises:
        ValueError: Candidates do not fit, or a score is not finite.
    """
    check_candidates(candidates)
    groups = plan_groups(candidates)
    scores, tokens = np.zeros(len(candidates)), np.zeros(len(candidates), dtype="int64")
    for group, answer in zip(groups, ask_all(groups, scorer, answers, on_answer), strict=True):
        if not np.isfinite(answer.scores).all():
            told = f"passage {group.doc_id!r} got scores {answer.scores}"
            raise ValueError(f"{told}, expected finite ones: try precision float32")
        scores[[*group.rows]] = answer.scores
        tokens[[*group.rows]] = answer.input_tokens // len(group)
    ranked = add_teacher_rank(candidates, scores).assign(teacher_score=scores)
    each = ranked.assign(n=tokens).groupby("query_id", sort=False)["n"].agg(["size", "sum"])
    counts = each.set_axis(["n_windows", "input_tokens"], axis=1).assign(output_tokens=0)
    return ranked, counts.reset_index()


class PointwiseLLM:
    """Scores of a causal language model; `settings` are fields of `LocalConfig`.

    The prompt is plain text with ``{passage}`` and, behind it, ``{query}``; markup of a chat, if a model
    wants it, is part of it. With ``query_likelihood`` the query stands last.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, /,
        **settings: Any,
    ) -> None:  # fmt: skip
        named = {"model": model.name_or_path or type(model).__name__} | settings
        self.config = checked(LocalConfig, named, what="PointwiseLLM")
        self.model, self.tokenizer = model.eval(), tokenizer
        self._end = tokenizer.eos_token_id or 0
        prompt = self.config.prompt or PROMPTS[self.config.mode]
        self._before, rest = prompt.split("{passage}")
        self._between, self._after = rest.split("{query}")
        self._between, self._gap = self._between.rstrip(" "), " " * self._between.endswith(" ")
        self._labels = []
        if self.config.mode == "yes_no":
            encoded = [[self._encode(word) for word in words] for words in _LABELS]
            single = [{x[0] for x in words if len(x) == 1} for words in encoded]
            self._labels = [sorted(tokens - {tokenizer.unk_token_id}) for tokens in single]
            if not all(self._labels):
                raise ValueError("yes_no: the tokenizer has no token for yes or no: use another mode")

    def ask(self, groups: Sequence[Group]) -> Iterator[tuple[int, Answer]]:
        """Score groups of similar length in one row of tokens, longest first."""
        parts = [self._parts(group) for group in groups]
        sizes = [sum(map(len, [passage, *queries])) for passage, queries in parts]
        row: list[int] = []
        for number in sorted(range(len(groups)), key=lambda i: -sizes[i]):
            if row and sum(sizes[i] for i in row) + sizes[number] > _ROW_TOKENS:
                yield from self._score(row, parts)
                row = []
            row.append(number)
        if row:
            yield from self._score(row, parts)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _parts(self, group: Group) -> tuple[list[int], list[list[int]]]:
        """Tokens up to the queries, and of each query with what is behind it."""
        start = [token for token in [self.tokenizer.bos_token_id] if token is not None]
        text = f"{self._before}{first_words(group.passage, self.config.max_words)}{self._between}"
        passage = start + self._encode(text)
        queries = [self._encode(f"{self._gap}{query}{self._after}") for query in group.queries]
        context = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        if (longest := len(passage) + max(map(len, queries))) > context:
            told = f"passage {group.doc_id!r} and a query have {longest} tokens, expected at most"
            raise ValueError(f"{told} {context}: lower max_words, {self.config.max_words}")
        if not all(queries):
            raise ValueError(f"a query of passage {group.doc_id!r} has no token: remove it")
        return passage, queries

    @torch.inference_mode()
    def _score(self, row: list[int], parts: list) -> Iterator[tuple[int, Answer]]:
        ids: list[int] = []
        positions: list[int] = []
        passages: list[int] = []  # of each token, the number of its passage
        branches: list[int] = []  # of each token, the number of its query; -1: it is of the passage
        seen: list[int] = []  # tokens behind which the next one is predicted
        predicted: list[int] = []
        spans: list[int] = []  # predictions of each query
        for number in row:
            passage, queries = parts[number]
            last = len(ids) + len(passage) - 1
            for branch, tokens in enumerate([passage, *queries], start=-1):
                first, is_passage = len(ids), branch < 0
                ids += tokens
                passages += [number] * len(tokens)
                branches += [branch] * len(tokens)
                begin = 0 if is_passage else len(passage)
                positions += range(begin, begin + len(tokens))
                if not is_passage and self._labels:
                    seen.append(len(ids) - 1)
                elif not is_passage:
                    seen += [last, *range(first, len(ids) - 1)]
                    predicted += tokens
                    spans.append(len(tokens))
        n_seen = len(seen)
        padding = (ids, self._end), (positions, 0), (passages, -1), (branches, -1), (seen, 0)
        for values, filler in padding:
            values += [filler] * (-len(values) % _MULTIPLE)
        device = self.model.device
        owner, branch = torch.tensor(passages, device=device), torch.tensor(branches, device=device)
        sees = (owner[:, None] == owner) & ((branch[:, None] == branch) | (branch == -1))
        allowed = sees.tril()[None, None]
        mask = torch.zeros(allowed.shape, dtype=self.model.dtype, device=device)
        mask.masked_fill_(~allowed, torch.finfo(mask.dtype).min)
        logits = self.model(
            input_ids=torch.tensor([ids], device=device), attention_mask=mask, use_cache=False,
            position_ids=torch.tensor([positions], device=device),
            logits_to_keep=torch.tensor(seen, device=device),
        ).logits[0, :n_seen].float()  # fmt: skip
        if self._labels:
            yes, no = (logits[:, tokens].logsumexp(1) for tokens in self._labels)
            scores = (yes - no).tolist()
        else:
            chosen = logits.gather(1, torch.tensor(predicted, device=device)[:, None]).squeeze(1)
            of_queries = (chosen - logits.logsumexp(1)).split(spans)
            scores = torch.stack([x.sum() for x in of_queries]).tolist()
        start = 0
        for number in row:
            passage, queries = parts[number]
            own = tuple(scores[start : (start := start + len(queries))])
            n_tokens = len(queries) * len(passage) + sum(map(len, queries))  # of prompts of their own
            yield number, Answer(scores=own, input_tokens=n_tokens, output_tokens=0)
