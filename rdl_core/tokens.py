"""Text as tokens: tokenised once, kept flat, gathered and packed on the device.

A `TokenStore` holds texts as one vector of token ids and one of offsets, on disk as two memory-mapped
files. `pack` builds the sequences that a cross-encoder reads, ``[CLS] query [SEP] passage [SEP]``, end
to end, without padding. In shapes, `n` is the number of pairs and `t` that of all their tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from rdl_core.files import write_json
from rdl_core.progress import progress

__all__ = ["Packed", "PairTemplate", "TokenCorpus", "TokenStore", "pack", "plan_batches"]

TOKENS, OFFSETS, UNFINISHED, FINISHED = "tokens.bin", "offsets.bin", "progress.json", "store.json"
# Most texts, and characters, handed to the tokenizer at once: it needs some 100 bytes for each token.
_CHUNK, _CHUNK_CHARACTERS = 4096, 2**22


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, without special tokens, as ragged rows."""

    flat: Tensor  #: int16 ``[tokens]``: ids modulo 2**16, or int32 where the vocabulary is larger.
    offsets: Tensor  #: int64 ``[rows + 1]``: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    @classmethod
    def build(
        cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path, *,
        max_tokens: int, total: int,
    ) -> TokenStore:  # fmt: skip
        """Tokenise `total` texts chunk by chunk into a folder, and map it; resumes where it was killed.

        Special tokens are left out, texts cut to `max_tokens`. ``progress.json`` says how far the files
        are whole, and becomes ``store.json``. `rdl_core.files.resumable` sees if the texts changed.
        """
        encoder = _encoder(tokenizer, max_tokens)
        done = _resume(folder, encoder)
        rest = islice(texts, done["rows"], None)
        rest = progress(rest, total=total, what="tokenising", done=done["rows"])
        with (folder / TOKENS).open("ab") as tokens, (folder / OFFSETS).open("ab") as offsets:
            for chunk in _chunks(rest):
                ids, lengths = _tokenise(chunk, encoder, done["dtype"])
                for file, array in ((tokens, ids), (offsets, done["tokens"] + lengths.cumsum())):
                    file.write(array)
                    file.flush()  # before the record that counts on it
                done |= {"rows": done["rows"] + len(chunk), "tokens": done["tokens"] + len(ids)}
                write_json(folder / UNFINISHED, done)
        os.replace(folder / UNFINISHED, folder / FINISHED)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Map a finished store, however large; ValueError if there is none or its files disagree."""
        try:
            done = json.loads((folder / FINISHED).read_text())
            sizes = {name: (folder / name).stat().st_size for name in (TOKENS, OFFSETS)}
            offsets = np.memmap(folder / OFFSETS, np.int64, mode="c")
            if sizes != _sizes(done) or offsets[-1] != done["tokens"]:
                raise ValueError(f"files of {sizes} bytes for {done['tokens']} tokens")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no whole token store ({error}): build it again") from None
        dtype = done["dtype"].replace("uint16", "int16")  # no file without tokens can be mapped
        ids = np.memmap(folder / TOKENS, dtype, mode="c") if done["tokens"] else np.empty(0, dtype)
        return cls(flat=torch.from_numpy(ids), offsets=torch.from_numpy(offsets))

    @classmethod
    def of_texts(cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TokenStore:
        """A store in memory of a few texts, such as one query's passages."""
        texts = list(texts)  # none at all is an error to transformers
        return cls.from_lists(texts and tokenizer(texts, add_special_tokens=False)["input_ids"])

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenStore:
        """A store in memory from lists of token ids."""
        lengths = torch.tensor([0, *map(len, rows)], dtype=torch.int64)
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        if ids.max(initial=0) < 2**16:
            ids = ids.astype(np.uint16).view(np.int16)
        return cls(flat=torch.from_numpy(ids), offsets=lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def to(self, device: torch.device | str) -> TokenStore:
        """The store on another device."""
        return TokenStore(self.flat.to(device), self.offsets.to(device))

    def lengths(self, rows: Tensor, max_tokens: int) -> Tensor:
        """Tokens in each row, at most `max_tokens`; int64, shaped like `rows`."""
        return (self.offsets[rows + 1] - self.offsets[rows]).clamp(max=max_tokens)

    def gather(self, rows: Tensor, lengths: Tensor, n_tokens: int) -> Tensor:
        """The first `lengths` ids of each row, end to end; int64 ``[n_tokens]``, their sum."""
        ids = self.flat[_ragged_positions(self.offsets[rows], lengths, n_tokens)].long()
        return ids & 0xFFFF if self.flat.dtype == torch.int16 else ids


@dataclass(frozen=True)
class TokenCorpus:
    """Queries and passages as tokens, with the ids of their rows."""

    query_ids: pd.Index
    queries: TokenStore
    doc_ids: pd.Index
    passages: TokenStore

    @classmethod
    def of(
        cls, queries: pd.DataFrame, passages: pd.DataFrame, tokenizer: PreTrainedTokenizerBase
    ) -> TokenCorpus:
        """Tokenise ``query_id, query`` and ``doc_id, text`` in memory."""
        query_ids, doc_ids = queries["query_id"].astype(object), passages["doc_id"].astype(object)
        stores = [TokenStore.of_texts(x, tokenizer) for x in (queries["query"], passages["text"])]
        return cls(pd.Index(query_ids), stores[0], pd.Index(doc_ids), stores[1])


@dataclass(frozen=True)
class PairTemplate:
    """Special tokens around a query and a passage, as an encoder was trained to see them."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int]  #: Segment ids of the query, ``between`` included, and of the passage.

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
        """Read off a pair that the tokenizer built; ValueError unless of BERT's or RoBERTa's form."""
        texts = chain("a0.", tokenizer.get_vocab())  # not every vocabulary knows a given letter
        probe = next(x for x in texts if tokenizer(x, add_special_tokens=False)["input_ids"])
        encoded = tokenizer(probe, probe)
        ids, text_of = encoded["input_ids"], encoded.sequence_ids()
        # Requested, they come even where the model never gets any: what comes by default counts.
        segments = encoded.get("token_type_ids", [0] * len(ids))
        query, passage = text_of.index(0), text_of.index(1)
        first, second = segments[query], segments[passage]
        if segments != [first] * passage + [second] * (len(ids) - passage):
            got = f"{segments} for tokens {ids}: use an encoder of BERT's or RoBERTa's form"
            raise ValueError(f"expected segments {first} up to the passage, then {second}, got {got}")
        between, after = ids[query + text_of.count(0) : passage], ids[passage + text_of.count(1) :]
        return cls(tuple(ids[:query]), tuple(between), tuple(after), (first, second))

    @property
    def n_tokens(self) -> int:
        """Special tokens per pair."""
        return len(self.before + self.between + self.after)


@dataclass(frozen=True)
class Packed:
    """Sequences end to end, as variable-length attention takes them."""

    input_ids: Tensor  #: int64 ``[t]``, as the next two.
    position_ids: Tensor  #: From 0 in every sequence.
    segment_ids: Tensor
    cu_seqlens: Tensor  #: int32 ``[n + 1]``: where each sequence starts, and the end of the last.
    max_length: int  #: Tokens in the longest sequence.

    def filled(self, multiple: int, lengths: int = 1) -> Packed:
        """With padding behind it, up to a multiple of tokens; `max_length` becomes one of `lengths`."""
        n_tokens, longest, device = len(self.input_ids), self.max_length, self.input_ids.device
        more, width = -n_tokens % multiple, -(-longest // lengths) * lengths
        if (more, width) == (0, longest):
            return self
        places = torch.arange(more, device=device) % longest
        ends = n_tokens + torch.arange(longest, more + longest, longest, device=device).clamp(max=more)
        return Packed(
            pad(self.input_ids, (0, more)), torch.cat([self.position_ids, places]),
            pad(self.segment_ids, (0, more)), torch.cat([self.cu_seqlens, ends.int()]), width,
        )  # fmt: skip


def pack(
    queries: TokenStore, passages: TokenStore, query_rows: Tensor, passage_rows: Tensor, *,
    template: PairTemplate, query_tokens: int, passage_tokens: int,
) -> Packed:  # fmt: skip
    """Build the sequences of pairs of rows, int64 ``[n]``, cut to so many tokens, where the stores are.

    >>> import torch
    >>> template = PairTemplate(before=(1,), between=(2,), after=(2,), segments=(0, 1))
    >>> store, rows = TokenStore.from_lists([[7, 8], [9]]), torch.tensor([0, 1])
    >>> packed = pack(store, store, rows, rows, template=template, query_tokens=1, passage_tokens=2)
    >>> packed.input_ids.tolist(), packed.cu_seqlens.tolist()
    ([1, 7, 2, 7, 8, 2, 1, 9, 2, 9, 2], [0, 6, 11])
    """
    before, between, after = map(len, (template.before, template.between, template.after))
    query_lengths = queries.lengths(query_rows, query_tokens)
    passage_lengths = passages.lengths(passage_rows, passage_tokens)
    passage_at = before + query_lengths + between
    lengths = passage_at + passage_lengths + after
    bounds = pad(lengths.cumsum(0), (1, 0))
    starts, ends = bounds[:-1], bounds[1:]
    sums = (query_lengths.sum(), passage_lengths.sum(), pad(lengths, (0, 1)).max())
    n_query, n_passage, longest = torch.stack(sums).tolist()  # the one wait
    n_tokens = n_query + n_passage + len(query_rows) * template.n_tokens
    input_ids = lengths.new_empty(n_tokens)
    _put_special(input_ids, starts, template.before)
    places = _ragged_positions(starts + before, query_lengths, n_query)
    input_ids.index_copy_(0, places, queries.gather(query_rows, query_lengths, n_query))
    _put_special(input_ids, starts + passage_at - between, template.between)
    places = _ragged_positions(starts + passage_at, passage_lengths, n_passage)
    input_ids.index_copy_(0, places, passages.gather(passage_rows, passage_lengths, n_passage))
    _put_special(input_ids, ends - after, template.after)
    position_ids = _ragged_positions(torch.zeros_like(starts), lengths, n_tokens)
    in_passage = position_ids >= passage_at.repeat_interleave(lengths, output_size=n_tokens)
    segment_ids = torch.where(in_passage, template.segments[1], template.segments[0])
    return Packed(input_ids, position_ids, segment_ids, bounds.int(), longest)


def plan_batches(lengths: Tensor, token_budget: int, *, workers: int = 1) -> list[Tensor]:
    """Indices of pairs of `lengths`, int64 ``[n]`` on the CPU, in batches of about equal cost.

    A batch has at most `token_budget` tokens, each pair counted as long as the longest, or one pair;
    fewer where some `workers` had none. The longest come first: memory runs out at once or never.

    >>> import torch
    >>> plan_batches(torch.tensor([3, 9, 4, 4]), token_budget=9)
    [tensor([1]), tensor([2, 3]), tensor([0])]
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    if workers > 1 and len(order):
        n_tokens, longest = int(lengths.sum()), int(lengths[order[0]])
        rounds = -(-n_tokens // (workers * token_budget))
        # A batch is short of its budget by half a pair or so.
        token_budget = min(token_budget, n_tokens // max(1, rounds * workers) + longest // 2)
    batches, start = [], 0
    while start < len(order):
        size = max(1, token_budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def _sizes(done: dict) -> dict[str, int]:
    """Bytes of a store's files as far as they are whole."""
    return {TOKENS: done["tokens"] * np.dtype(done["dtype"]).itemsize, OFFSETS: 8 * done["rows"] + 8}


def _resume(folder: Path, encoder: Tokenizer) -> dict:
    """What an earlier build with the same tokenizer finished, the files cut to it; else nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)  # unfinished from here on
    large = max(encoder.get_vocab().values(), default=0) >= 2**16
    key = hashlib.sha256(f"{encoder.encode_special_tokens} {encoder.to_str()}".encode()).hexdigest()
    done = {"key": key, "dtype": "int32" if large else "uint16", "rows": 0, "tokens": 0}
    with suppress(OSError, KeyError, TypeError, ValueError):  # nothing was finished
        earlier = json.loads((folder / UNFINISHED).read_text())
        sizes = _sizes(earlier)
        if earlier["key"] == key and all((folder / n).stat().st_size >= x for n, x in sizes.items()):
            done = earlier
    if not done["rows"]:
        for name, n_bytes in _sizes(done).items():
            (folder / name).write_bytes(bytes(n_bytes))
        write_json(folder / UNFINISHED, done)
    for name, n_bytes in _sizes(done).items():
        os.truncate(folder / name, n_bytes)
    return done


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk, n_characters = [], 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"expected texts, got {text!r}: fill it or leave it out")
        chunk.append(text)
        n_characters += len(text)
        if len(chunk) >= _CHUNK or n_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def _encoder(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Tokenizer:
    """The Rust tokenizer behind a fast one, a fifth faster alone; a copy, as cutting sets it."""
    encoder = copy.deepcopy(tokenizer.backend_tokenizer)
    encoder.no_padding()
    encoder.enable_truncation(max_tokens)
    encoder.encode_special_tokens = tokenizer.split_special_tokens
    return encoder


def _tokenise(texts: list[str], encoder: Tokenizer, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of some texts, end to end, and how many each has."""
    rows = [text.ids for text in encoder.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype, lengths.sum()), lengths


def _ragged_positions(starts: Tensor, lengths: Tensor, n_tokens: int) -> Tensor:
    """``starts[i], starts[i] + 1, ...`` for `lengths[i]` places each, end to end; int64 ``[t]``."""
    shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths, output_size=n_tokens)
    return torch.arange(n_tokens, device=starts.device) + shift


def _put_special(input_ids: Tensor, starts: Tensor, special: tuple[int, ...]) -> None:
    """Write special tokens at each start; as numbers, which need no copy to the device."""
    for i, token in enumerate(special):
        input_ids.index_fill_(0, starts + i, token)
