"""Recorded answers: a log, so that none is asked for twice, and a teacher that replays them.

:class:`AnswerLog` stores what a live teacher says. :func:`read_history` reads what others recorded:
RankLLM's invocation histories, of 2023 (JSON objects one after the other) and of today (one array),
and :class:`Replay` answers from them, which gives the recorded ranking without a model.

>>> window = Window(query_id="1", query="red fox", doc_ids=("a", "b"), passages=("A dog", "A fox"))
>>> prompt = "[1] A dog\\n[2] A fox\\nSearch Query: red fox.\\nRank the passages."
>>> [(number, answer)] = Replay([Recorded(prompt=prompt, response="[2] > [1]")]).ask([window])
>>> number, answer.text
(0, '[2] > [1]')
"""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rdl_core.teachers.answers import Answer, Window

__all__ = ["QUERY_PATTERN", "AnswerLog", "Recorded", "Replay", "read_history"]

#: Where a prompt names its query, in the wording of RankGPT, RankLLM and their descendants.
QUERY_PATTERN = r"search query: *(.+?)\.? *(?:\n|$)"

_SIMILAR = 0.7  # of the rarer words: right passages had 0.78 or more in 7,740 (cut, repaired texts)
_SHOWN = re.compile(r"^\[(\d+|[A-Z])\]", re.MULTILINE)
_BETWEEN = re.compile(r"[\s,]*")
_log = logging.getLogger(__name__)


class AnswerLog:
    """Answers in a file of JSON lines, each on the disk before the next window is asked.

    A run that was killed finds its answers and does not ask again. A last line that it did not
    finish is dropped, with a line in the log. The first line names the teacher, so that the answers
    of one are not taken for those of another.

    Args:
        path: The file; made if it is not there.
        teacher: Whose answers: the model and all settings that change its answers.

    Raises:
        ValueError: The file is another teacher's, a line is damaged, or an answer stands twice.

    >>> window = Window(query_id="q", query="red", doc_ids=("a", "b"), passages=("x", "y"))
    >>> AnswerLog(folder / "answers.jsonl", teacher="tiny").add(window, Answer(text="[2] > [1]"))
    >>> AnswerLog(folder / "answers.jsonl", teacher="tiny").get(window).text
    '[2] > [1]'
    """

    def __init__(self, path: str | Path, *, teacher: str) -> None:
        self.path = Path(path)
        self._answers: dict[tuple, Answer] = {}
        lines = self._whole_lines()
        if not lines:
            self._append({"teacher": teacher})
        for number, line in enumerate(lines, start=1):
            try:
                self._read(json.loads(line), teacher, first=number == 1)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(
                    f"expected answers of {teacher!r}, one JSON object a line; {self.path}, line "
                    f"{number}: {error!r}: repair or remove that line, or name another file"
                ) from error

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, window: Window) -> Answer | None:
        """The stored answer, or None if this window was not answered yet."""
        return self._answers.get(window.key)

    def add(self, window: Window, answer: Answer) -> None:
        """Store an answer.

        Raises:
            ValueError: The window has one already.
        """
        self._remember(window.key, answer)
        self._append({"key": window.key, "answer": asdict(answer)})

    def take(self, other: str | Path) -> int:
        """Store the answers of another log of the same teacher that are not here; gives how many.

        Args:
            other: Its file, which may be growing; it is not touched.
        """
        stored = len(self)
        for line in Path(other).read_bytes().split(b"\n")[1:-1]:  # the first names the teacher
            answered = json.loads(line)
            if tuple(answered["key"]) not in self._answers:
                self._read(answered, "", first=False)
                self._append(answered)
        return len(self) - stored

    def _read(self, line: dict, teacher: str, *, first: bool) -> None:
        if not first:
            answer = line["answer"]
            order = answer["order"] if answer["order"] is None else tuple(answer["order"])
            self._remember(tuple(line["key"]), Answer(**answer | {"order": order}))
        elif line["teacher"] != teacher:
            raise ValueError(f"these are answers of {line['teacher']!r}")

    def _remember(self, key: tuple, answer: Answer) -> None:
        if key in self._answers:
            raise ValueError(
                f"expected one answer for each window, got a second one for {key} in {self.path}: "
                "look it up with get before asking; let one process write to a file"
            )
        self._answers[key] = answer

    def _append(self, line: dict) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[bytes]:
        raw = self.path.read_bytes() if self.path.exists() else b""
        *lines, rest = raw.split(b"\n")
        if rest:
            os.truncate(self.path, len(raw) - len(rest))
            _log.warning("%s: dropped an unfinished last line of %d bytes", self.path, len(rest))
        return lines


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A prompt and what a model answered.

    >>> Recorded(prompt="[1] A fox ...", response="[1]").query_id is None
    True
    """

    prompt: str
    """Messages of a chat are joined by line ends."""
    response: str
    query_id: str | None = None
    """None if the file does not tell, as in 2023; then `Replay` finds the query in the prompt."""
    input_tokens: int | None = None
    output_tokens: int | None = None


def read_history(path: str | Path) -> list[Recorded]:
    """Read an invocation history of RankLLM, in the order of the file.

    Args:
        path: JSON objects ``{prompt, response}`` one after the other; or JSON arrays or lines of
            ``{query: {text, qid}, invocations_history: [{prompt, response, ...}]}``.

    Raises:
        ValueError: Names the file, the place and what stands there.

    >>> _ = (folder / "history.json").write_text('{"prompt": "p", "response": "[1]"}, ' * 2)
    >>> len(read_history(folder / "history.json"))
    2
    """
    records: list[Recorded] = []
    for place, item in _documents(Path(path)):
        try:
            records += _records(item)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected objects with prompt and response, or with query and invocations_history;"
                f" {path}, character {place}: {error!r}: is this an invocation history?"
            ) from error
    return records


class Replay:
    """A backend that gives recorded answers, each query's in the order of the file.

    Queries may be asked in any order among each other. Each recorded prompt is compared with the
    window that it answers, word by word, loosely, since prompts hold cut and repaired texts.

    Args:
        records: As :func:`read_history` gives them.
        query_pattern: Where a prompt names its query, for records without ``query_id``; the last
            match counts. Letter case is ignored.

    Raises:
        ValueError: A prompt without ``query_id`` does not match `query_pattern`.

    >>> prompt = "[1] A dog\\n[2] A fox\\nSearch query: red fox"
    >>> Replay([Recorded(prompt=prompt, response="[2] > [1]")]).n_unused
    1
    """

    can_retry = False

    def __init__(self, records: Iterable[Recorded], *, query_pattern: str = QUERY_PATTERN) -> None:
        self._pattern = re.compile(query_pattern, re.IGNORECASE)
        self._records: dict[tuple[str, str], deque[Recorded]] = defaultdict(deque)
        for number, record in enumerate(records, start=1):
            self._records[self._owner(record, number)].append(record)

    @property
    def n_unused(self) -> int:
        """Recorded answers that nobody asked for yet; 0 after a complete replay."""
        return sum(map(len, self._records.values()))

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Give each window its query's next answer.

        Raises:
            ValueError: A query has no answer left, or its next prompt shows other passages.
        """
        for number, window in enumerate(windows):
            left = self._records.get(("id", window.query_id)) or self._records.get(
                ("text", _words(window.query))
            )
            if not left:
                raise ValueError(
                    f"expected a recorded answer for {_described(window)}, found none left: was it "
                    "recorded with this list, window size, stride and number of passes?"
                )
            record = left.popleft()
            self._compare(window, record.prompt)
            yield number, Answer(
                text=record.response, input_tokens=record.input_tokens,
                output_tokens=record.output_tokens,
            )  # fmt: skip

    def _owner(self, record: Recorded, number: int) -> tuple[str, str]:
        if record.query_id is not None:
            return "id", record.query_id
        if (found := self._query(record.prompt)) is None:
            raise ValueError(
                f"expected prompts that name their query as {self._pattern.pattern!r}; record "
                f"{number} begins {record.prompt[:60]!r}: give query_pattern"
            )
        return "text", _words(found.group(1))

    def _query(self, prompt: str) -> re.Match | None:
        return next(reversed(list(self._pattern.finditer(prompt))), None)

    def _shown(self, prompt: str) -> list[str]:
        """The passages of a prompt: what stands behind [1], [2], ... at the start of a line."""
        spans: list[tuple[int, int]] = []
        for found in _SHOWN.finditer(prompt):
            if _is_next(found.group(1), len(spans) + 1):  # else an example, or part of a passage
                spans.append(found.span())
        last = self._query(prompt)
        after = last.start() if last and spans and last.start() > spans[-1][0] else len(prompt)
        stops = [*(start for start, _ in spans[1:]), after]
        return [prompt[end:stop] for (_, end), stop in zip(spans, stops)]

    def _compare(self, window: Window, prompt: str) -> None:
        """Refuse a prompt that shows other passages than the window, or in another order."""
        texts = self._shown(prompt)
        if len(texts) != len(window.passages):
            _refuse(window, f"{len(window.passages)} passages", f"{len(texts)}")
        for place, (text, passage) in enumerate(zip(texts, window.passages), start=1):
            if not _similar(text, passage):
                expected = f"at [{place}] passage {window.doc_ids[place - 1]}, {passage[:60]!r}"
                _refuse(window, expected, repr(text[:60]))


def _is_next(name: str, place: int) -> bool:
    return name == str(place) or (place <= 26 and name == chr(ord("A") + place - 1))


def _refuse(window: Window, expected: str, found: str) -> None:
    raise ValueError(
        f"expected the next recorded prompt for {_described(window)} to show {expected}; it shows "
        f"{found}: replay the list, window size and stride that were recorded"
    )


def _described(window: Window) -> str:
    place = f"pass {window.pass_number}, start {window.start}"
    return f"query {window.query_id!r} ({window.query!r}), {place}"


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _similar(left: str, right: str) -> bool:
    """Whether one text has nearly all the different words of the other, or both have none."""
    first, second = set(_words(left).split()), set(_words(right).split())
    fewer = min(len(first), len(second))
    return len(first & second) >= _SIMILAR * fewer if fewer else first == second


def _documents(path: Path) -> Iterator[tuple[int, Any]]:
    """JSON values that stand one after the other, with or without commas between them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {path}, found {error}: convert it first") from None
    decoder, place = json.JSONDecoder(), _next(text, 0)
    while place < len(text):
        try:
            item, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:  # also numbers and nesting past all measure
            at = getattr(error, "pos", place)
            raise ValueError(
                f"expected JSON in {path}, line {text.count(chr(10), 0, at) + 1}, found "
                f"{text[at:][:40]!r}: was the file cut off? Fetch it again"
            ) from error
        yield place, item
        place = _next(text, end)


def _next(text: str, place: int) -> int:
    return _BETWEEN.match(text, place).end()


def _records(item: Any) -> list[Recorded]:
    """The records of one JSON value."""
    if isinstance(item, list):
        return [record for part in item for record in _records(part)]
    if "invocations_history" not in item:
        return [_record(item, None)]
    query_id = str(item["query"]["qid"])
    return [_record(call, query_id) for call in item["invocations_history"]]


def _record(call: dict, query_id: str | None) -> Recorded:
    prompt = call["prompt"]
    if isinstance(prompt, list):
        prompt = "\n".join(message["content"] for message in prompt)
    return Recorded(
        prompt=prompt, response=call["response"], query_id=query_id,
        input_tokens=call.get("input_token_count"), output_tokens=call.get("output_token_count"),
    )  # fmt: skip
