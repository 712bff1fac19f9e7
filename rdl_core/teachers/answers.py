"""What a listwise ranker is asked, what it answers, and what can be read from that.

A prompt shows passages ``[1]`` to ``[n]``, or ``[A]`` to ``[T]``, and asks for ``[2] > [1] > ...``.
:func:`read_answer` reads identifiers in brackets alone: of "20 passages are provided", the reader
that takes digits anywhere makes a vote for passage 20 (zero-shot Vicuna 13B: 747 of 774 windows).
Whatever comes back, the order read is a permutation, and what had to be repaired is counted.

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
    "Answer", "Reading", "Window", "identifiers", "listwise_prompt", "read_answer",
    "read_identifiers",
]  # fmt: skip

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MAX_DIGITS = 9  # longer numbers name no passage, and int() refuses thousands of digits
_ONE = r"(?:\d+|[A-Za-z])"
_BRACKETED = re.compile(rf"\[\s*({_ONE}(?:[\s,;>]+{_ONE})*)\s*\]")  # also [3, 1, 2]
_CHAIN = re.compile(rf"{_BRACKETED.pattern}(?:[\s,;>]*{_BRACKETED.pattern})*")
_THOUGHT = re.compile(r"(</?think(?:ing)?>)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An order read from an answer; always a permutation.

    >>> read_answer("I cannot rank these 3 passages.", 3).status
    'unusable'
    """

    order: tuple[int, ...]
    """Places of the window, 0-based, best first."""
    n_missing: int
    """Passages not named; they follow those named, in the order they were shown in."""
    n_repeated: int
    """Identifiers that named a passage again; the first naming counts."""
    n_unknown: int
    """Identifiers of no passage of the window, such as ``[21]`` of 20."""

    @property
    def status(self) -> str:
        """``"clean"``, ``"repaired"``, or ``"unusable"`` if it names no passage of the window."""
        if self.n_missing == len(self.order):
            return "unusable"
        repairs = self.n_missing + self.n_repeated + self.n_unknown
        return "repaired" if repairs else "clean"


@dataclass(frozen=True, kw_only=True)
class Window:
    """Passages that one prompt shows, and what tells it from other windows.

    >>> window = Window(query_id="q", query="red fox", doc_ids=("a",), passages=("A fox.",))
    >>> window.key
    ('q', 1, 0, 0, 'a6d1417f47e23a18')
    """

    query_id: str
    query: str
    """Text of the query."""
    doc_ids: tuple[str, ...]
    passages: tuple[str, ...]
    """Texts, in the order of `doc_ids`: the order in which a prompt shows them."""
    pass_number: int = 1
    """Which pass over the list, from 1."""
    start: int = 0
    """First place of the window in the list, 0-based."""
    attempt: int = 0
    """How often it was asked before."""

    @property
    def key(self) -> tuple[str, int, int, int, str]:
        """Query, pass, start, attempt, and 16 digits of a SHA-256 of all that a prompt shows."""
        shown = json.dumps([self.query, self.doc_ids, self.passages])
        digest = hashlib.sha256(shown.encode()).hexdigest()[:16]
        return self.query_id, self.pass_number, self.start, self.attempt, digest


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a backend gives for one window: a text, or an order where it can tell it directly.

    >>> Answer(text="[2] > [1]", input_tokens=90).read(2).order, Answer(order=(1, 0)).read(2).order
    ((1, 0), (1, 0))
    """

    text: str | None = None
    """As the model wrote it."""
    order: tuple[int, ...] | None = None
    """Places of the window, 0-based, best first."""
    input_tokens: int | None = None
    """Tokens of the prompt; None if nobody counted."""
    output_tokens: int | None = None
    """Tokens written, thoughts included; None if nobody counted."""
    n_calls: int = 1
    """Requests that the answer took."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.order is None):
            raise ValueError(f"expected an answer with either text or order, got {self}: give one")

    def read(self, n: int) -> Reading:
        """The order of the window's `n` passages."""
        if self.order is None:
            return read_answer(self.text, n)
        return read_identifiers((place + 1 for place in self.order), n)


def read_answer(text: str, n: int) -> Reading:
    """Read the order of `n` passages from an answer, whatever it holds.

    Thoughts (``<think>``, also if not closed, or opened by the prompt) are dropped first. Letters,
    digits of any script and full-width brackets are understood; an identifier whose bracket was cut
    off is not read, since ``[1`` may be the start of ``[12]``. Where identifiers joined by nothing
    but ``>``, commas or spaces name all passages once, that order holds (the last one, if several),
    so that passages discussed before are no votes. Otherwise all identifiers count, in their order.

    Args:
        text: The answer.
        n: Passages in the window, at least 1.

    >>> read_answer("Passage [2] is off-topic, so: [C] > [A] > [B]", 3).order
    (2, 0, 1)
    """
    text = _without_thoughts(unicodedata.normalize("NFKC", text))
    text = text.replace("【", "[").replace("】", "]")
    chains = [_numbers(joined.group()) for joined in _CHAIN.finditer(text)]
    complete = [numbers for numbers in chains if sorted(numbers) == list(range(1, n + 1))]
    return read_identifiers(complete[-1] if complete else chain.from_iterable(chains), n)


def read_identifiers(numbers: Iterable[int], n: int) -> Reading:
    """Make a permutation of `n` passages from their numbers, and count what that took.

    Args:
        numbers: As named, best first, 1-based; others than 1..n are unknown.
        n: Passages in the window, at least 1.

    >>> read_identifiers([2, 2, 9], 3)
    Reading(order=(1, 0, 2), n_missing=2, n_repeated=1, n_unknown=1)
    """
    if n < 1:
        raise ValueError(f"expected a window of at least 1 passage, got {n}: leave it out")
    numbers = list(numbers)
    known = [number - 1 for number in numbers if 1 <= number <= n]
    named = list(dict.fromkeys(known))
    missing = sorted(set(range(n)) - set(named))
    return Reading(
        order=(*named, *missing),
        n_missing=len(missing),
        n_repeated=len(known) - len(named),
        n_unknown=len(numbers) - len(known),
    )


def identifiers(n: int, *, letters: bool = False) -> list[str]:
    """What `n` passages are called in a prompt.

    Raises:
        ValueError: More passages than letters.

    >>> identifiers(2), identifiers(2, letters=True)
    (['[1]', '[2]'], ['[A]', '[B]'])
    """
    if letters and n > len(_LETTERS):
        raise ValueError(
            f"expected at most {len(_LETTERS)} passages where letters name them, got {n}: use a "
            "smaller window, or numbers"
        )
    return [f"[{_LETTERS[i] if letters else i + 1}]" for i in range(n)]


def listwise_prompt(
    query: str, passages: Sequence[str], *, letters: bool = False, max_words: int = 300
) -> str:
    """The text that asks a model for an order of passages.

    Texts are put on one line, and what looks like an identifier in them loses its brackets
    (``[12]`` becomes ``(12)``), so that neither model nor reader mistakes it for one.

    Args:
        query: The query's text.
        passages: The window's texts.
        letters: Whether passages are ``[A]``, ``[B]``, ... instead of ``[1]``, ``[2]``, ...
        max_words: Words of each passage that are shown, at least 1.

    Returns:
        A prompt in plain text, without any chat markup.

    >>> print(listwise_prompt("red fox", ["a fox", "see [2]"]).partition("best")[0])
    Query: red fox
    <BLANKLINE>
    [1] a fox
    [2] see (2)
    <BLANKLINE>
    Sort the 2 passages above by how well they answer the query "red fox",
    """
    names = identifiers(len(passages), letters=letters)
    query = " ".join(_plain(query).split())
    shown = (" ".join(_plain(text).split()[:max_words]) for text in passages)
    listing = "\n".join(f"{name} {text}" for name, text in zip(names, shown))
    example = " > ".join(reversed(names[:2]))
    return (
        f"Query: {query}\n\n{listing}\n\n"
        f'Sort the {len(names)} passages above by how well they answer the query "{query}", best '
        f"first. Name every passage exactly once, by its identifier, in this form: {example}. "
        "Reply with that one line and nothing else."
    )


def _plain(text: str) -> str:
    return _BRACKETED.sub(r"(\1)", text)


def _without_thoughts(text: str) -> str:
    """Drop what stands between the tags, before an end whose start is in the prompt, or unended."""
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
    """Numbers that bracketed identifiers stand for; 0, which is no passage's, for huge ones."""
    tokens = (token for group in _BRACKETED.findall(text) for token in re.findall(_ONE, group))
    return [_number(token) for token in tokens]


def _number(token: str) -> int:
    if token.upper() in _LETTERS:
        return _LETTERS.index(token.upper()) + 1
    return int(token) if len(token) <= _MAX_DIGITS else 0
