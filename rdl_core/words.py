"""Words of a text, also in scripts that put no spaces between them.

In Chinese, Japanese, Thai, Lao, Burmese and Khmer each character counts as a word: it is about as many
tokens of a language model as an English word.
"""

import re
from itertools import islice, pairwise

__all__ = ["bigrams", "first_words", "n_tokens_about", "n_words"]

_UNSPACED = (  # Thai and Lao, Burmese, Khmer, kana, Han
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]{{1,40}}")  # longer ones are links and the like


def n_words(text: str) -> int:
    """Number of words."""
    return len(_WORD.findall(text))


def first_words(text: str, n: int) -> str:
    """The first `n` words, with single spaces."""
    text = " ".join(text.split())
    rest = next(islice(_WORD.finditer(text), n, None), None)
    return text if rest is None else text[: rest.start()].rstrip()


def n_tokens_about(text: str) -> int:
    """Tokens of a language model, roughly: one for 4 characters, or for one without spaces."""
    unspaced = sum(map(len, _RUN.findall(text)))
    return unspaced + -(-(len(text) - unspaced) // 4)


def bigrams(text: str) -> str:
    """The text with each run without spaces as pairs of neighbours, which a word index can find."""
    return _RUN.sub(lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ", text)
