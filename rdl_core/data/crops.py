"""Pseudo-queries: a few words in a row from each passage, where real queries are too few.

A student that starts from a bare encoder must see thousands of different queries before it matches
words with passages at all, and a test collection has dozens. Crops cost nothing, need no model, and
a bi-encoder that orders their candidates turns them into training lists.

Reference: Baldelli et al., TWOLAR, ECIR 2024 (cropped sentences as queries for distillation); Lee et
al., ACL 2019 (a sentence as a query for its passage).

>>> passages = pd.DataFrame({"doc_id": ["a"], "text": ["The red fox sleeps. It is shy."]})
>>> crops(passages)["query"].tolist()
['red fox sleeps']
"""

from __future__ import annotations

import re
from random import Random

import pandas as pd
from bm25s.stopwords import STOPWORDS_EN_PLUS

__all__ = ["crops"]

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
_PUNCTUATION = re.compile(r"[^\w' -]")
_STOP_WORDS = frozenset(STOPWORDS_EN_PLUS)


def crops(passages: pd.DataFrame, *, fewest: int = 4, most: int = 9) -> pd.DataFrame:
    """One pseudo-query for each passage that has a sentence with something to ask for.

    Args:
        passages: ``doc_id`` and ``text``.
        fewest: Words of the shortest crop; sentences with fewer are no source of any.
        most: Words of the longest.

    Returns:
        ``query_id``, the passage's id with ``.crop`` behind it, and ``query``: lower case, without
        punctuation, stop words at either end taken off, two words or more. A passage whose crop
        falls on stop words has none. Each draws from its own id and text alone.

    Raises:
        ValueError: `fewest` below 1 or above `most`.

    >>> passages = pd.DataFrame({"doc_id": ["a", "b"], "text": ["red foxes hunt small mice", "short"]})
    >>> crops(passages, fewest=5)["query_id"].tolist()
    ['a.crop']
    """
    if not 1 <= fewest <= most:
        raise ValueError(f"expected 1 <= fewest <= most, got {fewest} and {most}")
    rows = [
        (f"{doc_id}.crop", query)
        for doc_id, text in zip(passages["doc_id"], passages["text"], strict=True)
        if (query := _crop(doc_id, text, fewest, most))
    ]
    return pd.DataFrame(rows, columns=["query_id", "query"], dtype="str")


def _crop(doc_id: str, text: str, fewest: int, most: int) -> str:
    sentences = [_PUNCTUATION.sub("", s).lower().split() for s in _SENTENCE_END.split(text)]
    if not (long_enough := [words for words in sentences if len(words) >= fewest]):
        return ""
    draw = Random(f"{doc_id} {text}")  # of text: the same draws in every process and version
    words = draw.choice(long_enough)
    size = min(len(words), draw.randint(fewest, most))
    start = draw.randrange(len(words) - size + 1)
    telling = [n for n, word in enumerate(words[start : start + size]) if word not in _STOP_WORDS]
    if len(telling) < 2:
        return ""
    return " ".join(words[start + telling[0] : start + telling[-1] + 1])
