"""Shards of one piece of work: a shard has every so-many-th query, and all of them make the whole.

>>> from rdl_core.shards import in_turn
>>> in_turn([["q1", "q3"], ["q2"]])  # shards 1/2 and 2/2
['q1', 'q2', 'q3']
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["check_once", "in_turn", "whole"]

_T = TypeVar("_T")
_NONE: Any = object()


def whole(identities: Mapping[Path, Mapping]) -> dict:
    """The identity of all shards' work: each has ``shard``, ``[number, of]``, and else the same.

    ValueError names a shard that is missing, there twice, or of another configuration.
    """
    (first, wanted), *others = identities.items()
    number, of = wanted["shard"]
    for path, identity in others:
        values = identity | {"shard": [number, identity["shard"][1]]}
        if changed := [key for key in wanted | values if values.get(key) != wanted.get(key)]:
            differ = "; ".join(f"{k} is {values.get(k)!r}, not {wanted.get(k)!r}" for k in changed)
            raise ValueError(f"{path} was made with another configuration than {first}: {differ}")
    named = Counter(f"{identity['shard'][0]}/{of}" for identity in identities.values())
    if missing := [f"{n}/{of}" for n in range(1, of + 1) if f"{n}/{of}" not in named]:
        told = f"shards missing: {', '.join(missing)}; named were {', '.join(named)}"
        raise ValueError(f"{told}: name all, and run what was not, as with --shard {missing[0]}")
    if twice := [shard for shard, times in named.items() if times > 1]:
        raise ValueError(f"shard {twice[0]} is there more than once: name it once")
    return {**wanted, "shard": [1, 1]}


def in_turn(parts: Sequence[Sequence[_T]]) -> list[_T]:
    """Items of all shards in the order in which they were dealt: the first of each, the second, ..."""
    return [x for x in chain.from_iterable(zip_longest(*parts, fillvalue=_NONE)) if x is not _NONE]


def check_once(query_ids: Sequence[str], n_queries: int) -> None:
    """ValueError if a query is there twice, or one of `n_queries` is missing."""
    twice = [query_id for query_id, times in Counter(query_ids).items() if times > 1]
    if twice or len(query_ids) != n_queries:
        count = f"{len(query_ids)}, twice {twice[:3]}" if twice else len(query_ids)
        told = f"expected each of {n_queries} queries once, got {count}"
        raise ValueError(f"{told}: check that all shards were made of one file of candidates")
