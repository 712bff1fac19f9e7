"""Prompts of a listwise teacher, its answers, and the order that is read from them.

A prompt shows passages ``[1]`` to ``[n]``, or ``[A]`` to ``[Z]``, asking ``[2] > [1] > ...``. Only
identifiers in brackets count: else "20 passages are provided" would name passage 20 (Vicuna 13B: in 747
of 774 windows). An order is always a permutation; repairs are counted.

>>> from rdl_core.teachers.answers import read_answer
>>> read_answer("[3] > [1] > [3]", 3)
Reading(order=(2, 0, 1), n_missing=1, n_repeated=1, n_unknown=0)
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rdl_core.words import first_words

__all__ = ["Answer", "Reading", "Window", "identifiers", "read_answer", "without_thoughts"]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IDENTIFIER = r"(?:\d+|[A-Za-z])"
# Also [3, 1, 2] and ["3", "1"].
_BRACKETED = re.compile(rf"""\[\s*["']?({_IDENTIFIER}(?:[\s,;>"']+{_IDENTIFIER})*)["']?\s*\]""")
_NOUN = r"(?:passages?|documents?|docs?|texts?|then|rank)"
# Between identifiers of one ranking: signs, numbers of a list, what is ranked; not a blank line alone.
_JOINT = re.compile(rf"(?!\s*\n\s*\n\s*\Z)(?:[^\w\[\]]|[\d_]|\b{_NOUN}\b)*", re.IGNORECASE)
_NUMBERED = re.compile(rf"(?im)^\W*\d+[.):]\W*(?:{_NOUN}\W+)?{_BRACKETED.pattern}")
_BARE = re.compile(rf"(?i)\b(?:{_NOUN} )?{_IDENTIFIER}(?:\W*?[>→≻»]\W*?(?:{_NOUN} )?{_IDENTIFIER}\b)+")
_TAG = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)[^<>\[\]▷]*[>\]▷]"
_END = rf"[<\[◁]\|?(?:/(?:\w+:)?|end_of_){_TAG}"
_THOUGHT = re.compile(rf"[<\[◁]\|?(?:\w+:|begin_of_)?{_TAG}.*?(?:{_END}|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_OPENED_BY_PROMPT = re.compile(rf"\A.*{_END}", re.IGNORECASE | re.DOTALL)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")  # gpt-oss; the answer is in "final"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An order read from an answer; always a permutation."""

    order: tuple[int, ...]  # places of the window, 0-based, best first
    n_missing: int  # passages not named; they follow the named ones, in the order of the prompt
    n_repeated: int  # identifiers that named a passage again; the first mention counts
    n_unknown: int  # identifiers of no passage in the window, such as [21] of 20

    @property
    def status(self) -> str:
        """``"clean"``, ``"repaired"``, or ``"unusable"`` if no passage of the window is named."""
        if self.n_missing == len(self.order):
            return "unusable"
        return "repaired" if self.n_missing + self.n_repeated + self.n_unknown else "clean"


@dataclass(frozen=True, kw_only=True)
class Window:
    """The passages of one prompt, and the window's place in the ranking."""

    query_id: str
    query: str
    doc_ids: tuple[str, ...]
    passages: tuple[str, ...]  # texts in the order of doc_ids, which is the order of the prompt
    pass_number: int = 1
    start: int = 0  # first place of the window in the list
    attempt: int = 0  # how often the window was asked before

    wanted = "Ranking"  # what a model without a chat template is to write

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """Query, pass, start, attempt, and 16 digits of a SHA-256 of all texts and ids."""
        content = json.dumps([self.query, self.doc_ids, self.passages])
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.query_id, self.pass_number, self.start, self.attempt, digest

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def longest_answer(self) -> str:
        """A text as long as an answer without a preamble."""
        return " > ".join(identifiers(len(self)))

    def prompt(self, *, max_words: int, letters: bool = False) -> str:
        """The text that asks for an order, without chat markup.

        Each text becomes one line, a passage at most `max_words` words (`rdl_core.words`); ``[12]`` in
        it becomes ``(12)``, which is no identifier.
        """
        names, texts = identifiers(len(self), letters=letters), (self.query, *self.passages)
        query, *texts = (" ".join(_BRACKETED.sub(r"(\1)", text).split()) for text in texts)
        pairs = zip(names, texts, strict=True)
        listing = "\n".join(f"{name} {first_words(text, max_words)}" for name, text in pairs)
        return (
            f"Query: {query}\n\n{listing}\n\n"
            f'Sort the {len(names)} passages above by how well they answer the query "{query}", best '
            "first. Name every passage exactly once, by its identifier, in this form: "
            f"{' > '.join(reversed(names[:2]))}. Reply with that one line and nothing else."
        )

    def usable(self, answer: "Answer") -> bool:
        """Whether an answer names a passage of the window."""
        return answer.read(len(self)).status != "unusable"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A backend's answer: a text, or an order or scores if the backend has them directly."""

    text: str | None = None
    order: tuple[int, ...] | None = None  # places of the window, 0-based, best first
    scores: tuple[float, ...] | None = None  # of the queries of a pointwise teacher's passage
    input_tokens: int | None = None  # of the prompt; None if not counted
    output_tokens: int | None = None  # written, thoughts included; None if not counted
    n_calls: int = 1  # requests that the answer took
    why: str | None = None  # there is no text, or not all of it, as far as the server says

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.text, self.order, self.scores)) != 1:
            raise ValueError(f"expected an answer with one of text, order and scores, got {self}")

    def read(self, n: int) -> Reading:
        """The order of the window's `n` passages; of scores, of the `n` that were scored."""
        if self.scores is not None:
            return _reading(sorted(range(len(self.scores)), key=lambda i: -self.scores[i]), n)
        return read_answer(self.text, n) if self.order is None else _reading(self.order, n)


def read_answer(text: str, n: int) -> Reading:
    """Read the order of a window's `n` passages from any text.

    Thoughts between tags are dropped, also unclosed or opened by the prompt. Letters, digits of any
    script and full-width brackets count; ``[1``, which may begin ``[12]``, does not. Identifiers with
    only signs, list numbers or "passage" between them make a ranking, as does ``2 > 1`` without
    brackets. The last one of all passages counts; else the last that names more than half as many as
    the longest; else lines of a numbered list that begin so; else every one.
    """
    text = unicodedata.normalize("NFKC", text).replace("【", "[").replace("】", "]")
    text = without_thoughts(text)
    rankings, named, end = [], set(), 0
    for group in _BRACKETED.finditer(text):
        joined = rankings and _JOINT.fullmatch(text, end, group.start())
        if not joined or named.issuperset(range(n)):  # after a whole ranking, another one may begin
            rankings.append([])
            named = set()
        rankings[-1] += (places := _places(group[1]))
        named.update(places)
        end = group.end()
    if not rankings:
        rankings = [_places(chain[0]) for chain in _BARE.finditer(text)]
    sizes = [len({*ranking} & {*range(n)}) for ranking in rankings]
    longest = max(sizes, default=0)
    long = [x for x, size in zip(rankings, sizes, strict=True) if 2 * size > longest > 1]
    if best := [x for x in rankings if sorted(x) == list(range(n))] or long:
        return _reading(best[-1], n)
    lines = [place for line in _NUMBERED.findall(text) for place in _places(line)]
    return _reading(lines or [place for ranking in rankings for place in ranking], n)


def without_thoughts(text: str) -> str:
    """What an answer says behind its thoughts, or in its final channel."""
    if len(channels := _CHANNEL.split(text)) > 1:
        text = channels[-1] if channels[-2] == "final" else ""
    return _THOUGHT_OPENED_BY_PROMPT.sub("", _THOUGHT.sub("", text))


def _reading(places: Sequence[int], n: int) -> Reading:
    """A permutation of `n` passages from any places, best first."""
    known = [place for place in places if 0 <= place < n]
    named = list(dict.fromkeys(known))
    missing = sorted(set(range(n)) - set(named))
    return Reading(
        order=(*named, *missing), n_missing=len(missing), n_repeated=len(known) - len(named),
        n_unknown=len(places) - len(known),
    )  # fmt: skip


def identifiers(n: int, *, letters: bool = False) -> list[str]:
    """Names of `n` passages in a prompt: ``[1]``, ``[2]``, ... or ``[A]``, ``[B]``, ..."""
    if letters and n > 26:
        raise ValueError(f"letters name at most 26 passages, got {n}: use a smaller window, or numbers")
    return [f"[{_LETTERS[i] if letters else i + 1}]" for i in range(n)]


def _places(text: str) -> list[int]:
    """Places that identifiers name; of a huge number, which int() refuses, the first digits do."""
    names = re.findall(rf"\b{_IDENTIFIER}\b", text)
    return [int(x[:9]) - 1 if x.isdigit() else _LETTERS.find(x.upper()) for x in names]
