"""A listwise teacher that runs here: a causal language model of transformers.

Three ways to an order of a window's passages, named in :data:`MODES`:

- ``free``: the model writes what it likes, and :mod:`rdl_core.teachers.answers` reads it.
- ``constrained``: it can write nothing but a permutation, ``[3] > [1] > [2]``: at each step only
  tokens that continue one are allowed (:class:`PermutationGrammar`).
- ``first_token``: it writes nothing. Passages are named ``[A]``, ``[B]``, ...; one forward pass
  over the prompt and an opening bracket gives the logits of all letters, which are sorted.

Reference: Reddy et al., EMNLP 2024 (FIRST: the logits of the first token rank the window).

>>> grammar = PermutationGrammar([(5, 6), (5, 7)], [(8, 5, 6), (8, 5, 7)], end=2)
>>> grammar.allowed([]), grammar.allowed([5]), grammar.allowed([5, 7])
([5], [6, 7], [8])
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.teachers.answers import Answer, Window, identifiers, listwise_prompt, read_answer

__all__ = ["MODES", "LocalLLM", "PermutationGrammar"]

#: How an order is got; the module's text tells them apart.
MODES = ("free", "constrained", "first_token")

_SLACK_TOKENS = 32  # that a free answer may be longer than the ranking: a short preamble
_FEWEST_WORDS = 8  # of a passage; below, a window that does not fit is refused
_RETRY_TEMPERATURE = 0.7
_NO_THOUGHTS = {"enable_thinking": False}
_log = logging.getLogger(__name__)


class PermutationGrammar:
    """Which tokens may follow, if all of n identifiers are to be written once, and nothing else.

    Args:
        first: Tokens of each identifier where it opens the answer, as ``[3]``.
        following: Tokens of each where it follows another, as `` > [3]``.
        end: The token that ends the answer.

    Raises:
        ValueError: Two identifiers have the same tokens, or one's begin with another's, so that a
            permutation could not be told from its tokens.

    >>> PermutationGrammar([(3,), (4,)], [(3,), (4,)], end=0).allowed([4, 3])
    [0]
    """

    def __init__(
        self, first: Sequence[Sequence[int]], following: Sequence[Sequence[int]], *, end: int
    ) -> None:
        self._books = [{tuple(tokens): i for i, tokens in enumerate(b)} for b in (first, following)]
        self._n, self._end = len(first), end
        for book in self._books:
            heads = [tokens[:k] for tokens in book for k in range(len(tokens))]
            if len(book) != self._n or any(head in book for head in heads):
                raise ValueError(
                    f"expected {self._n} identifiers of different tokens, none the beginning of "
                    f"another, got {list(book)}: the tokenizer cannot write them; use mode 'free'"
                )
        self._lengths = sorted({len(tokens) for book in self._books for tokens in book})

    @property
    def max_tokens(self) -> int:
        """Most tokens that a permutation takes, its end included."""
        first, following = ([len(tokens) for tokens in book] for book in self._books)
        opening = max(one - other for one, other in zip(first, following, strict=True))
        return sum(following) + opening + 1

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Tokens that may come after those written; the end alone, if all is said."""
        book, left, written = self._books[0], set(range(self._n)), tuple(written)
        while left:
            heads = (written[:length] for length in self._lengths)
            said = next((head for head in heads if book.get(head) in left), None)
            if said is None:
                k = len(written)
                going_on = (t for t, i in book.items() if i in left and t[:k] == written)
                return sorted({tokens[k] for tokens in going_on})
            left.remove(book[said])
            book, written = self._books[1], written[len(said) :]
        return [self._end]


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A window's tokens, and which window it is."""

    number: int
    n: int
    tokens: list[int]


class LocalLLM:
    """A backend for `rdl_core.teachers.listwise.rank_lists`: batches of prompts through a model.

    The tokenizer's chat template is used if it has one. Passages are cut, all to the same number of
    words, where a prompt would be longer than the model's context. Decoding is greedy; what is
    asked again is sampled, seeded by the first window of its batch, as greedy decoding would only
    repeat itself.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        mode: One of `MODES`.
        batch_size: Windows at once.
        max_words: Words of a passage that are shown, if they fit.
        max_new_tokens: Longest answer of mode ``free``; None allows for a ranking and a short
            preamble. A model that thinks first needs thousands.
        chat_options: Named arguments for the chat template; by default those that turn thinking
            off where a template knows them.
        cache: How keys and values are kept, as transformers' ``cache_implementation``: with
            ``"static"``, in place, so that transformers compiles a step of decoding on a GPU.

    Raises:
        ValueError: An unknown mode, or no token that ends an answer.

    >>> from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=384, num_hidden_layers=1, **sizes))
    >>> window = Window(query_id="q", query="fox", doc_ids=("a", "b"), passages=("a dog", "a fox"))
    >>> [(_, answer)] = LocalLLM(model, ByT5Tokenizer(), mode="constrained").ask([window])
    >>> answer.text in ("[1] > [2]", "[2] > [1]")
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mode: str = "free",
        batch_size: int = 8,
        max_words: int = 300,
        max_new_tokens: int | None = None,
        chat_options: Mapping[str, object] = _NO_THOUGHTS,
        cache: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"expected a mode among {MODES}, got {mode!r}")
        self.model, self.tokenizer, self.mode = model.eval(), tokenizer, mode
        self.batch_size, self.max_words = batch_size, max_words
        self.max_new_tokens, self.chat_options, self.cache = max_new_tokens, dict(chat_options), cache
        if not self._ends:
            raise ValueError(
                f"expected an end-of-sequence token, {model.name_or_path!r} and its tokenizer have "
                "none: set tokenizer.eos_token"
            )
        self._grammar = lru_cache(maxsize=None)(self._make_grammar)

    @classmethod
    def load(
        cls, name: str, *, device: str | None = None, precision: str = "auto", **own
    ) -> LocalLLM:
        """Load a model and its tokenizer.

        Args:
            name: A folder or Hugging Face id.
            device: Where to compute; by default the first GPU, or the CPU.
            precision: As in `rdl_core.devices.resolve_precision`.
            own: Named arguments of the class.
        """
        where = torch.device(device) if device else default_device()
        dtype = PRECISIONS[resolve_precision(precision, where)]
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False
        ).to(where)
        return cls(model, AutoTokenizer.from_pretrained(name), **own)

    @property
    def can_retry(self) -> bool:
        """The other modes cannot fail."""
        return self.mode == "free"

    @property
    def name(self) -> str:
        """Model and settings that change answers, for `rdl_core.teachers.replay.AnswerLog`."""
        settings = [self.mode, f"max_words={self.max_words}", f"options={self.chat_options}"]
        if self.mode == "free":
            settings.append(f"max_new_tokens={self.max_new_tokens}")
        return ", ".join([self.model.name_or_path or type(self.model).__name__, *settings])

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Answer windows, those with prompts of about the same length together, longest first.

        The longest come first, so that a batch too large for the memory fails at once.
        """
        prompts = [self._prompt(number, window) for number, window in enumerate(windows)]
        prompts.sort(key=lambda prompt: -len(prompt.tokens))
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            first = windows[batch[0].number]
            # rank_lists hands in windows of one attempt.
            seed = int(first.key[-1][:15], 16) + first.attempt if first.attempt else None
            letters = self.mode == "first_token"
            answers = self._letters(batch) if letters else self._write(batch, seed)
            yield from zip((prompt.number for prompt in batch), answers, strict=True)

    # --- prompts

    def _prompt(self, number: int, window: Window) -> _Prompt:
        """The window's prompt, with as many words of each passage as the context has room for."""
        n, words = len(window.passages), self.max_words
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or float("inf")
        room = context - self._new_tokens(n)
        while len(tokens := self._tokens(window, words)) > room:
            words = min(words, max(len(text.split()) for text in window.passages)) * 4 // 5
            if words < _FEWEST_WORDS:
                raise ValueError(
                    f"expected prompts of at most {room} tokens, query {window.query_id!r} has "
                    f"{len(tokens)} with passages of {words * 5 // 4} words: use a smaller window"
                )
        if words < self.max_words:
            _log.info("query %s: passages cut to %d words to fit", window.query_id, words)
        return _Prompt(number=number, n=n, tokens=tokens)

    def _tokens(self, window: Window, words: int) -> list[int]:
        letters = self.mode == "first_token"
        text = listwise_prompt(window.query, window.passages, letters=letters, max_words=words)
        start = []
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
                **self.chat_options,
            )  # fmt: skip
            if self.mode != "free" and text.rstrip().endswith("<think>"):
                text += "\n</think>\n\n"  # else the first token is a thought's, not a letter's
        else:
            text += "\n\nRanking: "
            bos = self.tokenizer.bos_token_id
            start = [] if bos is None else [bos]
        return [*start, *self._encode(text + "[" if letters else text)]

    def _encode(self, text: str) -> list[int]:
        # Without special tokens: some tokenizers would put an end token behind the prompt.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _new_tokens(self, n: int) -> int:
        if self.mode == "first_token":
            return 1
        if self.mode == "constrained":
            return self._grammar(n).max_tokens
        ranking = len(self._encode(" > ".join(identifiers(n))))
        return self.max_new_tokens or ranking + _SLACK_TOKENS

    # --- answers

    def _write(self, batch: list[_Prompt], seed: int | None) -> list[Answer]:
        """Generated texts, greedy or, with a seed, sampled."""
        inputs, width = self._padded(batch)
        options = {"max_new_tokens": max(self._new_tokens(prompt.n) for prompt in batch)}
        if self.mode == "constrained":
            grammars = [self._grammar(prompt.n) for prompt in batch]
            options["prefix_allowed_tokens_fn"] = lambda row, tokens: grammars[row].allowed(
                tokens[width:].tolist()
            )
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            written = self._generate(inputs, sample=seed is not None, **options)
        return [
            self._answer(prompt, tokens)
            for prompt, tokens in zip(batch, written[:, width:].tolist(), strict=True)
        ]

    def _letters(self, batch: list[_Prompt]) -> list[Answer]:
        """Orders of the letters' logits; equal ones in the order shown."""
        inputs, _ = self._padded(batch)
        logits = self._generate(
            inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        ).logits[0]
        orders = [
            row[self._letter_tokens[: prompt.n]].float().argsort(descending=True, stable=True)
            for prompt, row in zip(batch, logits, strict=True)
        ]
        return [
            Answer(order=tuple(order.tolist()), input_tokens=len(prompt.tokens), output_tokens=0)
            for prompt, order in zip(batch, orders, strict=True)
        ]

    @torch.inference_mode()
    def _generate(self, inputs: Mapping[str, Tensor], *, sample: bool = False, **options):
        allowed = options.pop("prefix_allowed_tokens_fn", None)
        # All that a model's own configuration may set to something else, penalties above all: they
        # would push down identifiers because the prompt names them.
        sampling = {"temperature": _RETRY_TEMPERATURE, "top_k": 0, "top_p": 1.0} if sample else {}
        config = GenerationConfig(
            do_sample=sample, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
            eos_token_id=self._ends, pad_token_id=self._pad, cache_implementation=self.cache,
            **sampling, **options,
        )  # fmt: skip
        return self.model.generate(
            **inputs, generation_config=config, prefix_allowed_tokens_fn=allowed
        )

    def _padded(self, batch: list[_Prompt]) -> tuple[dict[str, Tensor], int]:
        """Prompts as tensors, padded on the left, and their common length."""
        width = max(len(prompt.tokens) for prompt in batch)
        gaps = [width - len(prompt.tokens) for prompt in batch]
        ids = [[self._pad] * gap + prompt.tokens for gap, prompt in zip(gaps, batch, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        tensors = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}, width

    def _answer(self, prompt: _Prompt, tokens: list[int]) -> Answer:
        # Its own limit, not that of the batch: a window must not depend on its neighbours.
        tokens = tokens[: self._new_tokens(prompt.n)]
        ends = [place for place, token in enumerate(tokens) if token in self._ends]
        said = tokens[: ends[0]] if ends else tokens
        # Special tokens stay: where <think> is one, thoughts could not be told from the answer.
        text = self.tokenizer.decode(said, skip_special_tokens=False)
        used = ends[0] + 1 if ends else len(tokens)
        return Answer(text=text, input_tokens=len(prompt.tokens), output_tokens=used)

    # --- what the tokenizer calls things

    @cached_property
    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return sorted({*ends, self.tokenizer.eos_token_id} - {None})

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self._ends[0] if pad is None else pad

    @cached_property
    def _letter_tokens(self) -> Tensor:
        """The token of each letter behind an opening bracket."""
        letters = [name[1] for name in identifiers(26, letters=True)]
        tokens = self.tokenizer.convert_tokens_to_ids(letters)
        unknown = {None, self.tokenizer.unk_token_id}
        if unknown & set(tokens) or len(set(tokens)) < len(letters):
            raise ValueError(
                "expected a tokenizer with a token for each letter, which "
                f"{self.tokenizer.name_or_path!r} is not: use mode 'constrained'"
            )
        return torch.tensor(tokens, device=self.model.device)

    def _make_grammar(self, n: int) -> PermutationGrammar:
        names = identifiers(n)
        first = [self._encode(name) for name in names]
        following = [self._encode(f" > {name}") for name in names]
        said = self.tokenizer.decode([*first[0], *(t for tokens in following[1:] for t in tokens)])
        if read_answer(said, n).status != "clean":
            raise ValueError(
                f"expected a tokenizer that can write {' > '.join(names)!r}, it makes of that "
                f"{said!r}: use mode 'free'"
            )
        return PermutationGrammar(first, following, end=self._ends[0])
