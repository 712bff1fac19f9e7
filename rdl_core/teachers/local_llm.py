"""A listwise teacher that runs here: a causal language model of transformers.

An order of a window's passages is obtained in one of two modes:

- ``free``: the model writes, and :mod:`rdl_core.teachers.answers` reads.
- ``first_token``: passages are named ``[A]``, ``[B]``, ...; the logits of all letters after the prompt
  and an opening bracket are sorted. Nothing is written (Reddy et al., FIRST, EMNLP 2024).
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase,
)  # fmt: skip

from rdl_core.config import LocalConfig
from rdl_core.data.downloads import cache_folder, embedded_path
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.files import checked, content_hash, partial
from rdl_core.teachers.answers import Answer, Window
from rdl_core.words import n_words

__all__ = ["CausalLM", "LocalLLM", "load_llm"]

_PREAMBLE_TOKENS = 32  # that a free answer may have beside the ranking
_FEWEST_WORDS = 8  # of a passage; below, a window that does not fit is refused
_RETRY_TEMPERATURE = 0.7
_log = logging.getLogger(__name__)


def load_llm(config: LocalConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, on the first GPU if there is one; GGUF weights are dequantised."""
    device, name = default_device(), embedded_path(config.model)
    dtype = PRECISIONS[resolve_precision(config.precision, device)]
    more = {"dtype": dtype, "trust_remote_code": False}
    try:
        name = _dequantised(Path(name), **more) if name.endswith(".gguf") else name
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, **more)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ImportError) as error:  # for want of gguf: transformers tells to install it
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"transformers cannot load {config.model}: {reason}: check the name") from None
    return model.to(device), tokenizer


def _dequantised(file: Path, **more: Any) -> Path:
    """A folder in the cache: of a GGUF file, transformers reads the header for half a minute."""
    folder = cache_folder() / "gguf" / f"{content_hash(file)[:16]}-{more['dtype']}"
    with FileLock(f"{folder}.lock"):  # makes its folder
        if not folder.is_dir():
            read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **more)
            vars(read.config).pop("quantization_config", None)  # what carries it is never saved
            plain = AutoModelForCausalLM.from_config(read.config, dtype=more["dtype"])
            plain.load_state_dict(read.state_dict())
            with partial(folder) as beside:
                plain.save_pretrained(beside)
                AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(beside)
    return folder


class CausalLM:
    """A causal language model with its tokenizer; `settings` are fields of `LocalConfig`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, /, **settings: Any
    ) -> None:
        named = {"model": model.name_or_path or type(model).__name__} | settings
        self.config = checked(LocalConfig, named, what=type(self).__name__)
        self.model, self.tokenizer = model.eval(), tokenizer
        own = model.config.get_text_config()
        self._context = getattr(own, "max_position_embeddings", None) or float("inf")

    def _encode(self, text: str, *, begin: bool = False) -> list[int]:
        # Without special tokens: some tokenizers would put an end token behind the prompt.
        start = [token for token in [self.tokenizer.bos_token_id] if begin and token is not None]
        return start + self.tokenizer.encode(text, add_special_tokens=False)


class LocalLLM(CausalLM):
    """A backend for `rdl_core.teachers.listwise.rank_lists`: batches of prompts through a model.

    The tokenizer's chat template is used if it has one. Passages are cut to one number of words if the
    context is too short. Decoding is greedy; retries are sampled, seeded by their batch's first window.
    `cache` is transformers' ``cache_implementation`` (``"static"`` compiles decoding on a GPU).
    """

    def __init__(self, *model_and_tokenizer: Any, cache: str | None = None, **settings: Any) -> None:
        super().__init__(*model_and_tokenizer, **settings)
        self.cache, self._letters = cache, self.config.mode == "first_token"
        self.can_retry = not self._letters  # which cannot fail
        ends = self.model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if not ends:
            raise ValueError(f"{self.config.model!r} has no end token: set tokenizer.eos_token")
        self._ends = sorted(ends)

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Answer windows in batches of similar length, longest first: out of memory shows at once."""
        prompts = [self._prompt(window) for window in windows]
        numbers = sorted(range(len(windows)), key=lambda i: -len(prompts[i]))
        answer = self._rank if self._letters else self._write
        for start in range(0, len(numbers), self.config.batch_size):
            batch = numbers[start : start + self.config.batch_size]
            answers = answer([windows[i] for i in batch], [prompts[i] for i in batch])
            yield from zip(batch, answers, strict=True)

    def _prompt(self, window: Window) -> list[int]:
        """The prompt's tokens, with as many words of each passage as fit into the context."""
        words, room = self.config.max_words, self._context - self._new_tokens(window)
        while len(tokens := self._tokens(window, words)) > room:
            words = min(words, max(map(n_words, window.passages))) * 4 // 5
            if words < _FEWEST_WORDS:
                told = f"query {window.query_id!r} has {len(tokens)} tokens at {words * 5 // 4} words"
                raise ValueError(f"{told} a passage, expected at most {room}: use a smaller window")
        if words < self.config.max_words:
            _log.info("query %s: passages cut to %d words to fit", window.query_id, words)
        return tokens

    def _tokens(self, window: Window, words: int) -> list[int]:
        text = window.prompt(letters=self._letters, max_words=words)
        opened = "[" * self._letters
        if not self.tokenizer.chat_template:
            return self._encode(f"{text}\n\n{window.wanted}: {opened}", begin=True)
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
            enable_thinking=False,  # where the template knows it
        )  # fmt: skip
        if self._letters and text.rstrip().endswith("<think>"):
            text += "\n</think>\n\n"  # else the first token is a thought's, not a letter's
        return self._encode(text + opened)

    def _new_tokens(self, window: Window) -> int:
        """Length of the longest answer."""
        longest = len(self._encode(window.longest_answer))
        return 1 if self._letters else self.config.max_new_tokens or longest + _PREAMBLE_TOKENS

    def _write(self, windows: list[Window], prompts: list[list[int]]) -> Iterator[Answer]:
        """Generated texts, greedy or, when asked again, sampled."""
        limits, options = [self._new_tokens(window) for window in windows], {}
        key, attempt = windows[0].key, windows[0].attempt  # the same attempt in all windows of a call
        if attempt:
            options = {"do_sample": True, "temperature": _RETRY_TEMPERATURE, "top_k": 0, "top_p": 1.0}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(key[-1][:15], 16) + attempt)
            written = self._generate(prompts, max_new_tokens=max(limits), **options)
        written = written[:, max(map(len, prompts)) :].tolist()
        for prompt, tokens, limit in zip(prompts, written, limits, strict=True):
            tokens = tokens[:limit]  # its own, not the batch's: a window must not depend on others
            length = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
            # Special tokens stay: <think> may be one, which tells thoughts from the answer.
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=False)
            n_written = min(length + 1, len(tokens))
            yield Answer(text=text, input_tokens=len(prompt), output_tokens=n_written)

    def _rank(self, windows: list[Window], prompts: list[list[int]]) -> Iterator[Answer]:
        """Orders of the letters' logits; equal ones keep the prompt's order."""
        options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        [logits] = self._generate(prompts, **options).logits
        scores = logits[:, self._letter_tokens].float()
        for window, prompt, row in zip(windows, prompts, scores, strict=True):
            order = tuple(row[: len(window)].argsort(descending=True, stable=True).tolist())
            yield Answer(order=order, input_tokens=len(prompt), output_tokens=0)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], **options: Any) -> Any:
        """What the model makes of prompts, padded on the left, with any token: it is masked."""
        ids = pad_sequence([*map(torch.tensor, prompts)], True, -1, "left").to(self.model.device)
        # A model's own configuration may set penalties, which push down identifiers the prompt names.
        config = GenerationConfig(**{
            "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
            "eos_token_id": self._ends, "pad_token_id": 0, "cache_implementation": self.cache,
        } | options)  # fmt: skip
        own = {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long()}
        return self.model.generate(**own, generation_config=config)

    @cached_property
    def _letter_tokens(self) -> Tensor:
        """The token of each letter behind an opening bracket."""
        tokens = self.tokenizer.convert_tokens_to_ids([*ascii_uppercase])
        if {None, self.tokenizer.unk_token_id} & set(tokens) or len(set(tokens)) < len(tokens):
            name = self.tokenizer.name_or_path
            raise ValueError(f"the tokenizer {name!r} lacks a letter's token: use mode 'free'")
        return torch.tensor(tokens, device=self.model.device)
