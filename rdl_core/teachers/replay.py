"""Recorded answers: a log, so that nothing is asked twice, and a teacher that replays recordings."""

import json
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ftfy import fix_text

from rdl_core.data.formats import each_record
from rdl_core.teachers.answers import Answer, Window
from rdl_core.words import bigrams

__all__ = ["AnswerLog", "Recorded", "Replay", "read_history"]

_QUERY = re.compile(r"search query: *(.+?)\.? *(?:\n|$)", re.IGNORECASE)  # as RankGPT and RankLLM say
_log = logging.getLogger(__name__)


class AnswerLog:
    """A teacher's answers as JSON lines, each on the disk before the next window is asked.

    The first line names the teacher: model and all settings that change answers. The first answer makes
    the file; the last answer of a window counts. A last line that a kill cut off is dropped; ValueError
    names other damage or teachers.
    """

    def __init__(self, path: str | Path, *, teacher: str) -> None:
        self.path, self.teacher = Path(path), teacher
        self._answers: dict[tuple, Answer] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, self._cut_off = content.split(b"\n")
        self._size = len(content) - len(self._cut_off)
        if self._cut_off:
            _log.warning("%s: leaving out an unfinished last line", self.path)
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if number > 1:
                    fields = entry["answer"].items()
                    answer = {name: tuple(x) if isinstance(x, list) else x for name, x in fields}
                    self._answers[tuple(entry["key"])] = Answer(**answer)
                elif entry["teacher"] != teacher:
                    raise ValueError(f"these are answers of {entry['teacher']!r}")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                told = f"{self.path}, line {number}: expected answers of {teacher!r}; {error!r}"
                raise ValueError(f"{told}: repair or remove that line, or name another file") from error
        self._earlier = set(self._answers)

    def get(self, window: Window) -> Answer | None:
        """The stored answer; None, too, if an earlier run got no usable one, to be asked again."""
        key, tries = window.key, []
        while (again := (*key[:3], key[3] + len(tries), key[4])) in self._answers:
            tries.append(window.usable(self._answers[again]) or again not in self._earlier)
        return self._answers[key] if any(tries) else None

    def add(self, window: Window, answer: Answer) -> None:
        """Store an answer, in place of the window's earlier one."""
        self._store({window.key: answer})

    def take(self, other: str | Path) -> None:
        """Store the answers that only the same teacher's other log has, which may be growing."""
        theirs = AnswerLog(other, teacher=self.teacher)._answers
        self._store({key: answer for key, answer in theirs.items() if key not in self._answers})

    def _store(self, answers: dict[tuple, Answer]) -> None:
        entries = [{"key": key, "answer": asdict(answer)} for key, answer in answers.items()]
        if entries and not self._size:
            entries.insert(0, {"teacher": self.teacher})
        lines = "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()
        with self.path.open("ab") as file:
            if self._cut_off:
                file.truncate(self._size)
            self._cut_off, self._size = b"", self._size + file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._answers |= answers
        self._earlier -= answers.keys()


class Recorded(NamedTuple):
    """What a model was asked, as text, and what it answered."""

    prompt: str
    answer: Answer
    query_id: str | None = None  # None, as in 2023: the prompt names the query


def read_history(path: str | Path) -> list[Recorded]:
    """Read records ``{prompt, response}``, or ``{query: {qid}, invocations_history: [records]}``."""
    records, (values, unit) = [], each_record(path)
    for number, value in values:
        try:
            grouped = "invocations_history" in value
            query_id = str(value["query"]["qid"]) if grouped else None
            for call in value["invocations_history"] if grouped else [value]:
                prompt, text = call["prompt"], call["response"]
                if isinstance(prompt, list):
                    prompt = "\n".join(message["content"] for message in prompt)
                if not isinstance(prompt, str) or not isinstance(text, str):
                    raise TypeError("prompt and response must be texts")
                tokens = {f"{x}_tokens": call.get(f"{x}_token_count") for x in ("input", "output")}
                records.append(Recorded(prompt, Answer(text=text, **tokens), query_id))
        except (KeyError, TypeError, AttributeError) as error:
            expected = "prompt and response, or query and invocations_history"
            raise ValueError(f"{path}, {unit} {number}: expected {expected}; {error!r}") from error
    return records


class Replay:
    """A backend that gives recorded answers, each query's in the order of the file."""

    can_retry = False

    def __init__(self, records: Iterable[Recorded]) -> None:
        self._records: dict[Any, deque[Recorded]] = defaultdict(deque)  # of a query's id or words
        for number, record in enumerate(records, start=1):
            names = [record.query_id] if record.query_id else _QUERY.findall(record.prompt)
            if not names:
                raise ValueError(f"recorded prompt {number} names no query: {record.prompt[:60]!r}")
            self._records[record.query_id or (*_words(names[-1]),)].append(record)

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Give each window its query's next answer; ValueError if none is left, or it does not fit."""
        for number, window in enumerate(windows):
            place = f"query {window.query_id!r} ({window.query!r}), pass {window.pass_number}, "
            place += f"start {window.start}: replay the list, window size, stride and passes recorded"
            left = self._records.get(window.query_id) or self._records.get((*_words(window.query),))
            if not left:
                raise ValueError(f"no recorded answer is left for {place}")
            prompt, answer, _ = left.popleft()
            texts = _passages(prompt)
            for i, (theirs, ours) in enumerate(zip_longest(texts, window.passages), start=1):
                words, own = set(_words(theirs or "")), set(_words(ours or ""))
                # Of 7,740 right passages, cut and repaired by prompts, each shared 0.78 or more.
                alike = words == own or len(words & own) >= max(1, 0.7 * min(len(words), len(own)))
                if theirs is None or ours is None or not alike:
                    expected = f"{ours!r:.60} as passage {i} of {len(window)}"
                    recorded = f"{theirs!r:.60}, {i} of {len(texts)}"
                    raise ValueError(f"expected {expected}, recorded was {recorded}, for {place}")
            yield number, answer


def _passages(prompt: str) -> list[str]:
    """The passages of a prompt: what stands behind [1], [2], ... at the start of a line."""
    spans: list[tuple[int, int]] = []
    for name in re.finditer(r"^\[(\d+|[A-Z])\]", prompt, re.MULTILINE):
        if name[1] in (str(len(spans) + 1), chr(ord("A") + len(spans))):  # else part of a text
            spans.append(name.span())
    last = spans[-1][1] if spans else 0
    end = max((query.start() for query in _QUERY.finditer(prompt, last)), default=len(prompt))
    stops = [*(start for start, _ in spans), end][1:]
    return [prompt[start:stop] for (_, start), stop in zip(spans, stops, strict=True)]


def _words(text: str) -> list[str]:
    """ASCII and other parts of words, once the encoding is repaired as RankLLM repairs it."""
    return re.findall(r"[a-z0-9]+|[^\W\x00-\x7f]+", bigrams(fix_text(text).casefold()))
