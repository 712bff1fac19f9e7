"""Pointwise teachers: a causal language model scores each passage for a query and writes nothing.

- ``query_likelihood``: log-probability of the query behind the passage (Sachan et al., EMNLP 2022).
- ``yes_no``: log-odds of "yes" against "no" as the next word (Nogueira et al., EMNLP Findings 2020;
  Zhuang et al., NAACL 2024).

Lists share passages, so a passage is read once for all its queries: in one row of tokens, a query sees
the passage and itself, at the positions that it would have alone.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rdl_core.config import PROMPTS
from rdl_core.teachers.answers import Answer
from rdl_core.teachers.encoders import add_teacher_rank
from rdl_core.teachers.listwise import ask_all, check_candidates
from rdl_core.teachers.local_llm import CausalLM
from rdl_core.teachers.replay import AnswerLog
from rdl_core.words import first_words

__all__ = ["Group", "PointwiseLLM", "plan_groups", "score_lists"]

_MOST_QUERIES = 32  # of a group: a row's attention grows with the square of its length
_ROW_TOKENS = 1024  # of short groups that share a row
_MULTIPLE = 64  # rows are filled up to it: kernels of the CPU are made, and kept, for each length
_LABELS = ("yes", " yes", "Yes", " Yes"), ("no", " no", "No", " No")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A passage and the queries that it is scored for."""

    doc_id: str
    passage: str
    queries: tuple[str, ...]
    rows: tuple[int, ...]  # of the candidates, one for each query

    longest_answer = ""

    def __len__(self) -> int:
        return len(self.queries)

    def prompt(self, *, max_words: int) -> str:
        """What is read, without what stands between."""
        return "\n".join([first_words(self.passage, max_words), *self.queries])

    def usable(self, answer: Answer) -> bool:
        """Scores always are."""
        return True

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """In the form of a window's."""
        content = json.dumps([self.passage, self.queries])
        return self.doc_id, 1, 0, 0, hashlib.sha256(content.encode()).hexdigest()[:16]


def plan_groups(candidates: pd.DataFrame) -> list[Group]:
    """All candidates by passage, at most 32 queries in a group."""
    groups = []
    for doc_id, rows in candidates.reset_index(drop=True).groupby("doc_id", sort=False):
        for start in range(0, len(rows), _MOST_QUERIES):
            part = rows.iloc[start : start + _MOST_QUERIES]
            own = {"passage": part["text"].iloc[0], "queries": tuple(part["query"])}
            groups.append(Group(doc_id=doc_id, rows=tuple(part.index), **own))
    return groups


def score_lists(
    candidates: pd.DataFrame, scorer: Any, *, answers: AnswerLog | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank each query's candidates, as for `rdl_core.teachers.listwise.rank_lists`, by scores.

    `scorer` is a :class:`PointwiseLLM`, or what answers groups as it does. Gives the candidates with
    ``teacher_score`` and ``teacher_rank``, equal scores by the first stage's rank; and a report, a row
    per query: ``n_windows`` (its passages), ``input_tokens`` (as of own prompts), ``output_tokens``.
    """
    check_candidates(candidates)
    groups = plan_groups(candidates)
    scores, tokens = np.zeros(len(candidates)), np.zeros(len(candidates), dtype="int64")
    for group, answer in zip(groups, ask_all(groups, scorer, answers), strict=True):
        if not np.isfinite(answer.scores).all():
            told = f"passage {group.doc_id!r} got scores {answer.scores}"
            raise ValueError(f"{told}, expected finite ones: try precision float32")
        scores[[*group.rows]] = answer.scores
        tokens[[*group.rows]] = answer.input_tokens // len(group)
    ranked = add_teacher_rank(candidates, scores).assign(teacher_score=scores)
    each = ranked.assign(n=tokens).groupby("query_id", sort=False)["n"]
    report = each.agg(n_windows="size", input_tokens="sum").assign(output_tokens=0)
    return ranked, report.reset_index()


class PointwiseLLM(CausalLM):
    """Scores of a causal language model; `settings` are fields of `LocalConfig`.

    The prompt is plain text with ``{passage}`` and, behind it, ``{query}``, which stands last with
    ``query_likelihood``; markup of a chat, if a model wants it, is part of it.
    """

    def __init__(self, *model_and_tokenizer: Any, **settings: Any) -> None:
        super().__init__(*model_and_tokenizer, **settings)
        prompt = self.config.prompt or PROMPTS[self.config.mode]
        self._before, rest = prompt.split("{passage}")
        between, self._after = rest.split("{query}")
        self._between, self._gap = between.rstrip(" "), " " * between.endswith(" ")
        self._labels = []
        for words in _LABELS if self.config.mode == "yes_no" else ():
            encoded = [self._encode(word) for word in words]
            single = {x[0] for x in encoded if len(x) == 1} - {self.tokenizer.unk_token_id}
            if not single:
                raise ValueError("yes_no: the tokenizer has no token for yes or no: use another mode")
            self._labels.append(sorted(single))

    def ask(self, groups: Sequence[Group]) -> Iterator[tuple[int, Answer]]:
        """Score each group once, those of similar length in one row of tokens, longest first."""
        parts = []  # tokens up to the queries, and of each query with what is behind it
        for group in groups:
            text = first_words(group.passage, self.config.max_words)
            passage = self._encode(f"{self._before}{text}{self._between}", begin=True)
            queries = [self._encode(f"{self._gap}{query}{self._after}") for query in group.queries]
            if (longest := len(passage) + max(map(len, queries))) > self._context:
                told = f"passage {group.doc_id!r} and a query have {longest} tokens, expected at most"
                raise ValueError(f"{told} {self._context}: lower max_words, {self.config.max_words}")
            if not all(queries):
                raise ValueError(f"a query of passage {group.doc_id!r} has no token: remove it")
            parts.append((passage, queries))
        sizes = [len(passage) + sum(map(len, queries)) for passage, queries in parts]
        rows: list[list[int]] = []
        for number in sorted(range(len(groups)), key=lambda i: -sizes[i]):
            if not rows or sum(sizes[i] for i in rows[-1]) + sizes[number] > _ROW_TOKENS:
                rows.append([])
            rows[-1].append(number)
        for row in rows:
            for number, own in zip(row, self._score([parts[i] for i in row]), strict=True):
                passage, queries = parts[number]
                n_tokens = len(queries) * len(passage) + sum(map(len, queries))  # of own prompts
                yield number, Answer(scores=tuple(own), input_tokens=n_tokens, output_tokens=0)

    @torch.inference_mode()
    def _score(self, parts: list[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        """Scores of each passage's queries, from one row of tokens."""
        tokens: list[tuple[int, ...]] = []  # id, position, number of its passage, of its query or -1
        seen: list[int] = []  # tokens behind which the next one is predicted
        predicted: list[int] = []
        for number, (passage, queries) in enumerate(parts):
            tokens += [(token, place, number, -1) for place, token in enumerate(passage)]
            last = len(tokens) - 1
            for branch, query in enumerate(queries):
                first = len(tokens)
                tokens += [(x, place, number, branch) for place, x in enumerate(query, len(passage))]
                seen += [len(tokens) - 1] if self._labels else [last, *range(first, len(tokens) - 1)]
                predicted += query
        n_seen, device, dtype = len(seen), self.model.device, self.model.dtype
        tokens += [(0, 0, -1, -1)] * (-len(tokens) % _MULTIPLE)
        seen += [0] * (-n_seen % _MULTIPLE)
        ids, positions, owner, branch = torch.tensor(tokens, device=device).T.contiguous()
        sees = (owner[:, None] == owner) & ((branch[:, None] == branch) | (branch == -1))
        mask = torch.zeros(sees.shape, dtype=dtype, device=device)
        mask.masked_fill_(~sees.tril(), torch.finfo(dtype).min)
        logits = self.model(
            input_ids=ids[None], attention_mask=mask[None, None], use_cache=False,
            position_ids=positions[None], logits_to_keep=torch.tensor(seen, device=device),
        ).logits[0, :n_seen].float()  # fmt: skip
        if self._labels:
            yes, no = (logits[:, labels].logsumexp(1) for labels in self._labels)
            scores = yes - no
        else:
            chosen = logits.gather(1, torch.tensor(predicted, device=device)[:, None]).squeeze(1)
            lengths = [len(query) for _, queries in parts for query in queries]
            scores = torch.stack([x.sum() for x in (chosen - logits.logsumexp(1)).split(lengths)])
        return [x.tolist() for x in scores.split([len(queries) for _, queries in parts])]
