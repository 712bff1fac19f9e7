"""What a listwise ranker is asked, what it answers, and which order is read from the answer.

A prompt shows passages ``[1]`` to ``[n]``, or ``[A]`` to ``[T]``, and asks for ``[2] > [1] > ...``.
:func:`read_answer` reads identifiers in brackets only: reading digits anywhere turns "20 passages are
provided" into a vote for passage 20 (zero-shot Vicuna 13B: 747 of 774 windows). The order is always a
permutation, and every repair is counted.

>>> from rdl_core.teachers.answers import read_answer
>>> read_answer("[3] > [1] > [3]", 3)
Reading(order=(2, 0, 1), n_missing=1, n_repeated=1, n_unknown=0)
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

__all__ = [
    "Answer", "Reading", "Window", "identifiers", "listwise_prompt", "read_answer", "read_identifiers",
]  # fmt: skip

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MAX_DIGITS = 9  # longer numbers name no passage, and int() refuses thousands of digits
_IDENTIFIER = r"(?:\d+|[A-Za-z])"
_BRACKETED = re.compile(rf"\[\s*({_IDENTIFIER}(?:[\s,;>]+{_IDENTIFIER})*)\s*\]")  # also [3, 1, 2]
_CHAIN = re.compile(rf"{_BRACKETED.pattern}(?:[\s,;>]*{_BRACKETED.pattern})*")
_THOUGHT = re.compile(r"(</?think(?:ing)?>)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An order read from an answer; always a permutation."""

    order: tuple[int, ...]
    """Places of the window, 0-based, best first."""
    n_missing: int
    """Passages not named; they follow the named ones, in the order of the prompt."""
    n_repeated: int
    """Identifiers that named a passage again; the first mention counts."""
    n_unknown: int
    """Identifiers of no passage in the window, such as ``[21]`` of 20."""

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
    passages: tuple[str, ...]
    """Texts in the order of `doc_ids`, which is the order of the prompt."""
    pass_number: int = 1
    start: int = 0
    """First place of the window in the list, 0-based."""
    attempt: int = 0
    """How often the window was asked before."""

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """Query, pass, start, attempt, and 16 digits of a SHA-256 of all texts and ids."""
        content = json.dumps([self.query, self.doc_ids, self.passages])
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.query_id, self.pass_number, self.start, self.attempt, digest


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A backend's answer for one window: a text, or an order if the backend has one directly."""

    text: str | None = None
    order: tuple[int, ...] | None = None
    """Places of the window, 0-based, best first."""
    input_tokens: int | None = None
    """Of the prompt; None if not counted."""
    output_tokens: int | None = None
    """Tokens written, thoughts included; None if not counted."""
    n_calls: int = 1
    """Requests that the answer took."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.order is None):
            raise ValueError(f"expected an answer with either text or order, got {self}")

    def read(self, n: int) -> Reading:
        """The order of the window's `n` passages."""
        if self.order is None:
            return read_answer(self.text, n)
        return read_identifiers((place + 1 for place in self.order), n)


def read_answer(text: str, n: int) -> Reading:
    """Read the order of a window's `n` passages from any text.

    Thoughts (``<think>``, also unclosed or opened by the prompt) are dropped. Letters, digits of any
    script and full-width brackets count; an identifier whose bracket was cut off does not, as ``[1``
    may be the start of ``[12]``. If identifiers joined only by ``>``, commas or spaces name all
    passages once, the last such chain is the order, so that passages discussed before are no votes.
    Otherwise all identifiers count, in their order.
    """
    text = _without_thoughts(unicodedata.normalize("NFKC", text)).replace("【", "[").replace("】", "]")
    chains = [_numbers(match.group()) for match in _CHAIN.finditer(text)]
    complete = [numbers for numbers in chains if sorted(numbers) == list(range(1, n + 1))]
    return read_identifiers(complete[-1] if complete else chain.from_iterable(chains), n)


def read_identifiers(numbers: Iterable[int], n: int) -> Reading:
    """Make a permutation of `n` passages from 1-based numbers, best first; others are unknown."""
    if n < 1:
        raise ValueError(f"expected a window of at least 1 passage, got {n}")
    numbers = list(numbers)
    known = [number - 1 for number in numbers if 1 <= number <= n]
    named = list(dict.fromkeys(known))
    missing = sorted(set(range(n)) - set(named))
    return Reading(
        order=(*named, *missing), n_missing=len(missing), n_repeated=len(known) - len(named),
        n_unknown=len(numbers) - len(known),
    )  # fmt: skip


def identifiers(n: int, *, letters: bool = False) -> list[str]:
    """Names of `n` passages in a prompt: ``[1]``, ``[2]``, ... or ``[A]``, ``[B]``, ..."""
    if letters and n > 26:
        raise ValueError(f"letters name at most 26 passages, got {n}: use a smaller window, or numbers")
    return [f"[{_LETTERS[i] if letters else i + 1}]" for i in range(n)]


def listwise_prompt(
    query: str, passages: Sequence[str], *, letters: bool = False, max_words: int = 300
) -> str:
    """The text that asks a model for an order of passages, without chat markup.

    Each text becomes one line of at most `max_words` words, and what looks like an identifier loses
    its brackets (``[12]`` becomes ``(12)``), so that neither model nor reader mistakes it for one.
    """
    names = identifiers(len(passages), letters=letters)
    query = " ".join(_BRACKETED.sub(r"(\1)", query).split())
    texts = (" ".join(_BRACKETED.sub(r"(\1)", text).split()[:max_words]) for text in passages)
    listing = "\n".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))
    return (
        f"Query: {query}\n\n{listing}\n\n"
        f'Sort the {len(names)} passages above by how well they answer the query "{query}", best '
        "first. Name every passage exactly once, by its identifier, in this form: "
        f"{' > '.join(reversed(names[:2]))}. Reply with that one line and nothing else."
    )


def _without_thoughts(text: str) -> str:
    """The text without thoughts; an end tag without a start ends a thought that the prompt opened."""
    kept, thinking = [], False
    for piece in _THOUGHT.split(text):
        if not _THOUGHT.fullmatch(piece):
            kept += [] if thinking else [piece]
            continue
        if piece.startswith("</") and not thinking:
            kept.clear()
        thinking = not piece.startswith("</")
    return "".join(kept)


def _numbers(text: str) -> list[int]:
    """Numbers of bracketed identifiers; 0, which is no passage's, for huge ones."""
    tokens = (token for group in _BRACKETED.findall(text) for token in re.findall(_IDENTIFIER, group))
    return [
        int(token) if token.isdigit() and len(token) <= _MAX_DIGITS
        else _LETTERS.find(token.upper()) + 1 if len(token) == 1 else 0
        for token in tokens
    ]  # fmt: skip
