"""One record of each format, taken apart into columns."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rdl_core.data.formats.order import NAMES

Rows = dict[str, Any]  # columns of one record's rows; what is no list stands for every row

TEXT = ("text", "segment", "contents", "content", "body", "passage")  # RankLLM's order
_PADDING = "<padding_passage>"  # RankGPT's filling of short lists
_PERMUTATION = re.compile(r"\s*\[\d+\](\s*>\s*\[\d+\])*\s*")


class Misfit(ValueError):  # noqa: N818 - it becomes a ValueError that names the line
    """What of a record does not fit: expected, given."""


def rank_llm(record: Any) -> Rows:
    if "hits" in _object(record):
        hits = _each(record, "hits")
        query_ids = list(dict.fromkeys(id_of(hit, "qid") for hit in hits))
        if len(query_ids) > 1 or not hits:
            raise Misfit("hits of one query id", query_ids or "no hits, so that it is unknown")
        found = {"query_id": query_ids[0], "query": _str(record, "query")}
        found["rank"] = [_integer(hit, "rank") for hit in hits]
        found["text"] = [text_of(hit, TEXT) for hit in hits]
    else:
        hits, query = _each(record, "candidates"), _get(record, "query")
        found = {"query_id": id_of(query, "qid"), "query": _str(query, "text")}
        found["rank"] = list(range(1, len(hits) + 1))
        found["text"] = [text_of(_get(hit, "doc"), TEXT) for hit in hits]
    found["doc_id"] = [id_of(hit, "docid") for hit in hits]
    return found | {"score": [_number(hit, "score") for hit in hits]}


def id_list(record: Any) -> Rows:
    doc_ids = [id_of({"doc_ids": doc_id}, "doc_ids") for doc_id in _each(record, "doc_ids")]
    found = {"query_id": id_of(record, "query_id"), "doc_id": doc_ids}
    found["rank"] = list(range(1, len(doc_ids) + 1))
    if "labels" not in record:
        return found | {"teacher_rank": found["rank"]}
    labels = [_integer({"labels": label}, "labels") for label in _each(record, "labels")]
    if len(labels) != len(doc_ids) or None in labels:
        raise Misfit(f"a label for each of {len(doc_ids)} doc_ids", record["labels"])
    return found | {"relevance": labels}


def n_way(record: Any) -> Rows:
    pairs = record[1:] if isinstance(record, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Misfit("[qid, [pid, score], ...]", repr(record)[:80])
    scores = [_number({"score": score}, "score") for _, score in pairs]
    if None in scores:
        raise Misfit("a score for each passage", repr(record)[:80])
    return {
        "query_id": id_of({"qid": record[0]}, "qid") if record else None,
        "doc_id": [id_of({"pid": doc_id}, "pid") for doc_id, _ in pairs],
        "score": scores,
    }


def row(record: Any) -> Rows:
    record = _object(record)
    return {
        "query_id": [id_of(record, *NAMES["query_id"])],
        "doc_id": [id_of(record, *NAMES["doc_id"])],
        "score": [_number(record, "score")],
        **{name: [_integer(record, name)] for name in ("rank", "relevance", "teacher_rank")},
        **{name: [_str(record, name, known=False)] for name in ("query", "text")},
    }


def rankgpt(record: Any, answer: str | None, counts: dict[str, int]) -> Rows:
    passages = _each(record, "retrieved_passages")
    positives = record.get("positive_passages") and _each(record, "positive_passages")
    positive_ids = {id_of(passage, "docid") for passage in positives or ()}
    texts = [text_of(passage, TEXT) for passage in passages]
    kept = [number for number, text in enumerate(texts) if text != _PADDING]
    doc_ids = [id_of(passages[number], "docid") for number in kept]
    order = _permutation(answer, len(passages), counts) if answer is not None else None
    teacher = order and [number for number in order if number in kept]
    return {
        "query_id": id_of(record, "query_id"),
        "query": _str(record, "query"),
        "doc_id": doc_ids,
        "text": [texts[number] for number in kept],
        "rank": list(range(1, len(kept) + 1)),
        "relevance": [1 if doc_id in positive_ids else None for doc_id in doc_ids],
        "teacher_rank": teacher and [teacher.index(number) + 1 for number in kept],
    }


def _permutation(answer: str, size: int, counts: dict[str, int]) -> list[int] | None:
    """Numbers from 0, best first; None, and counted why, unless each of `size` is named once."""
    if not _PERMUTATION.fullmatch(answer):
        counts["n_unread"] += 1
        return None
    named = [int(digits) - 1 for digits in re.findall(r"\d+", answer)]
    known = {number for number in named if 0 <= number < size}
    wrong = {
        "n_missing": size - len(known),
        "n_repeated": len(named) - len(set(named)),
        "n_unknown": len(set(named) - known),
    }
    for what, count in wrong.items():
        counts[what] += count
    return None if any(wrong.values()) else named


def hard_negatives(record: Any) -> Rows:
    systems = {"pos": _each(record, "pos")}
    for system in _object(_get(record, "neg")):
        systems[_encodable(system)] = _each(record["neg"], system)
    entries = [
        (system, entry if isinstance(entry, dict) else {"pid": entry})
        for system, passages in systems.items() for entry in passages
    ]  # fmt: skip
    return {
        "query_id": id_of(record, "qid"),
        "doc_id": [id_of(entry, "pid") for _, entry in entries],
        "system": [system for system, _ in entries],
        "score": [_number(entry, "ce-score") for _, entry in entries],
    }


def invocations(record: Any) -> Rows:
    history = "invocations_history" in _object(record)
    calls = _each(record, "invocations_history") if history else [record]
    prompts = [_get(call, "prompt") for call in calls]
    return {
        "query_id": id_of(_get(record, "query"), "qid") if history else None,
        "prompt": [
            _encodable(prompt) if isinstance(prompt, str) else json.dumps(prompt)
            for prompt in prompts
        ],
        "response": [_str(call, "response") for call in calls],
        "input_tokens": [_integer(call, "input_token_count") for call in calls],
        "output_tokens": [_integer(call, "output_token_count") for call in calls],
    }


# --- one value, or what does not fit about it ---------------------------------------------------


def _object(value: Any) -> dict:
    if not isinstance(value, dict):
        raise Misfit("an object", repr(value)[:80])
    return value


def _get(record: Any, *names: str) -> Any:
    for name in names:
        if name in _object(record):
            return record[name]
    raise Misfit(f"the key {' or '.join(names)}", f"keys {list(_object(record))}")


def _each(record: Any, name: str) -> list:
    if not isinstance(value := _get(record, name), list):
        raise Misfit(f"{name} as a list", repr(value)[:80])
    return value


def id_of(record: Any, *names: str) -> str:
    value = _get(record, *names)
    if not isinstance(value, str) and not _is_integer(value) or value == "":
        raise Misfit(f"{' or '.join(names)} as a string or an integer", repr(value)[:80])
    return _encodable(str(value))


def _str(record: Any, *names: str, known: bool = True) -> str | None:
    value = _get(record, *names) if known else record.get(names[0])
    if value is None and not known:
        return None
    if not isinstance(value, str):
        raise Misfit(f"{' or '.join(names)} as a string", repr(value)[:80])
    return _encodable(value)


def text_of(record: Any, names: tuple[str, ...]) -> str:
    """A text with its title, as ir_datasets joins them."""
    text, title = _str(record, *names), _str(record, "title", known=False)
    return f"{title} {text}" if title else text


def _encodable(value: str) -> str:
    if not value.isascii():
        value.encode()  # JSON can name half a character, which no file or frame can hold
    return value


def _integer(record: Any, name: str) -> int | None:
    """An integer, or None where there is none."""
    value = _object(record).get(name)
    if value is None or (_is_integer(value) and -(2**63) <= value < 2**63):
        return value
    raise Misfit(f"{name} as an integer of 64 bits", repr(value)[:80])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(record: Any, name: str) -> float | None:
    """A finite number, or None where there is none."""
    value = _object(record).get(name)
    if value is None:
        return None
    try:
        if isinstance(value, float) or _is_integer(value):
            if math.isfinite(number := float(value)):
                return number
    except OverflowError:  # an integer past all floats
        pass
    raise Misfit(f"{name} as a finite number", repr(value)[:80])
