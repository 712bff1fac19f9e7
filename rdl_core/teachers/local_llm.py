"""A listwise teacher that runs here: a causal language model of transformers.

An order of a window's passages is obtained in one of three modes:

- ``free``: the model writes, and :mod:`rdl_core.teachers.answers` reads.
- ``constrained``: it can only write a permutation, ``[3] > [1] > [2]``: each step allows no tokens but
  those that continue one (:class:`PermutationGrammar`).
- ``first_token``: it writes nothing. Passages are named ``[A]``, ``[B]``, ...; one forward pass over
  the prompt and an opening bracket gives the logits of all letters, which are sorted.

Reference: Reddy et al., EMNLP 2024 (FIRST: the logits of the first token rank the window).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor

from rdl_core.config import LocalConfig
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.files import checked
from rdl_core.teachers.answers import Answer, Window, identifiers, listwise_prompt, read_answer

__all__ = ["LocalLLM", "PermutationGrammar"]

_PREAMBLE_TOKENS = 32  # that a free answer may have beside the ranking
_FEWEST_WORDS = 8  # of a passage; below, a window that does not fit is refused
_RETRY_TEMPERATURE = 0.7
_log = logging.getLogger(__name__)


class PermutationGrammar:
    """Which tokens may follow if each of n identifiers is to be written once, and nothing else.

    Args:
        first: Tokens of each identifier at the start of the answer, as ``[3]``.
        following: Tokens of each identifier after another, as `` > [3]``.
        end: The token that ends the answer.
    """

    def __init__(
        self, first: Sequence[Sequence[int]], following: Sequence[Sequence[int]], *, end: int
    ) -> None:
        self._books = [{tuple(tokens): i for i, tokens in enumerate(b)} for b in (first, following)]
        self._n, self._end = len(first), end
        for book in self._books:
            if len(book) != self._n or any(t[:k] in book for t in book for k in range(len(t))):
                raise ValueError(
                    f"the tokenizer does not tell {self._n} identifiers apart, {list(book)}: two are "
                    "equal, or one begins another: use mode 'free'"
                )
        self._lengths = sorted({len(tokens) for book in self._books for tokens in book})

    @property
    def max_tokens(self) -> int:
        """Most tokens that a permutation takes, its end included."""
        first, following = ([len(tokens) for tokens in book] for book in self._books)
        return sum(following) + max(a - b for a, b in zip(first, following, strict=True)) + 1

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Tokens that may come after those written; the end alone after a whole permutation."""
        book, left, written = self._books[0], set(range(self._n)), tuple(written)
        while left:
            heads = (written[:length] for length in self._lengths)
            head = next((head for head in heads if book.get(head) in left), None)
            if head is None:
                k = len(written)
                return sorted({t[k] for t, i in book.items() if i in left and t[:k] == written})
            left.remove(book[head])
            book, written = self._books[1], written[len(head) :]
        return [self._end]


class LocalLLM:
    """A backend for `rdl_core.teachers.listwise.rank_lists`: batches of prompts through a model.

    The tokenizer's chat template is used if it has one. If a prompt would be longer than the model's
    context, all passages are cut to the same number of words. Decoding is greedy; retries are sampled,
    seeded by the first window of their batch, as greedy decoding would repeat itself.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        cache: transformers' ``cache_implementation``; ``"static"`` compiles decoding on a GPU.
        settings: Fields of `rdl_core.config.LocalConfig`.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, /,
        *, cache: str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        named = {"model": model.name_or_path or type(model).__name__} | settings
        self.config = checked(LocalConfig, named, what="LocalLLM")
        self.model, self.tokenizer, self.cache = model.eval(), tokenizer, cache
        self._letters = self.config.mode == "first_token"
        ends = model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        if not ends:
            raise ValueError(f"{self.config.model!r} has no end token: set tokenizer.eos_token")
        self._ends, pad = sorted(ends), tokenizer.pad_token_id
        self._pad = self._ends[0] if pad is None else pad
        self._grammar = lru_cache(maxsize=None)(self._make_grammar)

    @classmethod
    def from_config(cls, config: LocalConfig) -> LocalLLM:
        """Load a model and its tokenizer, on the first GPU if there is one."""
        device, name = default_device(), config.model
        dtype = PRECISIONS[resolve_precision(config.precision, device)]
        own = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(name, **own)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"transformers cannot load {name}: {reason}: check the name") from None
        return cls(model.to(device), tokenizer, **vars(config))

    @property
    def can_retry(self) -> bool:
        """The other modes cannot fail."""
        return self.config.mode == "free"

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Answer windows in batches of similar length, longest first: out of memory shows at once."""
        prompts = [self._prompt(window) for window in windows]
        numbers = sorted(range(len(windows)), key=lambda i: -len(prompts[i]))
        for start in range(0, len(numbers), self.config.batch_size):
            batch = numbers[start : start + self.config.batch_size]
            first = windows[batch[0]]  # all windows of a call have the same attempt
            seed = int(first.key[-1][:15], 16) + first.attempt if first.attempt else None
            sizes = [len(windows[i].passages) for i in batch]
            write = self._rank if self._letters else self._write
            yield from zip(batch, write([prompts[i] for i in batch], sizes, seed), strict=True)

    def _prompt(self, window: Window) -> list[int]:
        """The prompt's tokens, with as many words of each passage as fit into the context."""
        words, config = self.config.max_words, self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or float("inf")
        room = context - self._new_tokens(len(window.passages))
        while len(tokens := self._tokens(window, words)) > room:
            words = min(words, max(len(text.split()) for text in window.passages)) * 4 // 5
            if words < _FEWEST_WORDS:
                raise ValueError(
                    f"the prompt of query {window.query_id!r} has {len(tokens)} tokens for passages of "
                    f"{words * 5 // 4} words, expected at most {room}: use a smaller window"
                )
        if words < self.config.max_words:
            _log.info("query %s: passages cut to %d words to fit", window.query_id, words)
        return tokens

    def _tokens(self, window: Window, words: int) -> list[int]:
        text = listwise_prompt(window.query, window.passages, letters=self._letters, max_words=words)
        start = []
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
                enable_thinking=False,  # where the template knows it
            )  # fmt: skip
            if self.config.mode != "free" and text.rstrip().endswith("<think>"):
                text += "\n</think>\n\n"  # else the first token is a thought's, not a letter's
        else:
            text += "\n\nRanking: "
            start = [token for token in [self.tokenizer.bos_token_id] if token is not None]
        return [*start, *self._encode(text + "[" * self._letters)]

    def _encode(self, text: str) -> list[int]:
        # Without special tokens: some tokenizers would put an end token behind the prompt.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _new_tokens(self, n: int) -> int:
        """Longest answer for `n` passages."""
        if self.config.mode == "constrained":
            return self._grammar(n).max_tokens
        ranking = len(self._encode(" > ".join(identifiers(n))))
        return 1 if self._letters else self.config.max_new_tokens or ranking + _PREAMBLE_TOKENS

    def _write(self, prompts: list[list[int]], sizes: list[int], seed: int | None) -> list[Answer]:
        """Generated texts, greedy or, with a seed, sampled."""
        limits, width = [self._new_tokens(n) for n in sizes], max(map(len, prompts))
        options = {"max_new_tokens": max(limits)}
        if self.config.mode == "constrained":
            grammars = [self._grammar(n) for n in sizes]
            options["allowed"] = lambda row, tokens: grammars[row].allowed(tokens[width:].tolist())
        if seed is not None:
            options |= {"do_sample": True, "temperature": _RETRY_TEMPERATURE, "top_k": 0, "top_p": 1.0}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            written = self._generate(prompts, **options)[:, width:].tolist()
        answers = []
        for prompt, tokens, limit in zip(prompts, written, limits, strict=True):
            tokens = tokens[:limit]  # its own, not the batch's: a window must not depend on others
            length = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
            # Special tokens stay: where <think> is one, thoughts could not be told from the answer.
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=False)
            counts = {"input_tokens": len(prompt), "output_tokens": min(length + 1, len(tokens))}
            answers.append(Answer(text=text, **counts))
        return answers

    def _rank(self, prompts: list[list[int]], sizes: list[int], _: int | None) -> list[Answer]:
        """Orders of the letters' logits; equal ones keep the prompt's order."""
        options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        answers, [logits] = [], self._generate(prompts, **options).logits
        for prompt, n, row in zip(prompts, sizes, logits[:, self._letter_tokens].float(), strict=True):
            order = tuple(row[:n].argsort(descending=True, stable=True).tolist())
            answers.append(Answer(order=order, input_tokens=len(prompt), output_tokens=0))
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], *, allowed: Any = None, **options: Any) -> Any:
        """What the model makes of prompts, padded on the left."""
        width = max(map(len, prompts))
        ids = [[self._pad] * (width - len(tokens)) + tokens for tokens in prompts]
        mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]
        # All that a model's own configuration may set to something else, penalties above all: they
        # would push down identifiers because the prompt names them.
        config = transformers.GenerationConfig(**{
            "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
            "eos_token_id": self._ends, "pad_token_id": self._pad, "cache_implementation": self.cache,
        } | options)  # fmt: skip
        return self.model.generate(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            generation_config=config, prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip

    @cached_property
    def _letter_tokens(self) -> Tensor:
        """The token of each letter behind an opening bracket."""
        letters = [name[1] for name in identifiers(26, letters=True)]
        tokens = self.tokenizer.convert_tokens_to_ids(letters)
        if {None, self.tokenizer.unk_token_id} & set(tokens) or len(set(tokens)) < len(letters):
            name = self.tokenizer.name_or_path
            raise ValueError(f"the tokenizer {name!r} lacks a letter's token: use mode 'constrained'")
        return torch.tensor(tokens, device=self.model.device)

    def _make_grammar(self, n: int) -> PermutationGrammar:
        names = identifiers(n)
        first = [self._encode(name) for name in names]
        following = [self._encode(f" > {name}") for name in names]
        text = self.tokenizer.decode([*first[0], *(t for tokens in following[1:] for t in tokens)])
        if read_answer(text, n).status != "clean":
            ranking = " > ".join(names)
            raise ValueError(f"the tokenizer writes {ranking!r} as {text!r}: use mode 'free'")
        return PermutationGrammar(first, following, end=self._ends[0])
