"""Text as tokens: tokenised once, kept flat, gathered and packed on the device.

A `TokenStore` holds texts as one vector of token ids and one of offsets, on disk as two memory-mapped
files. `pack` builds the sequences that a cross-encoder reads, ``[CLS] query [SEP] passage [SEP]``, end
to end, without padding. In shapes, `n` is the number of pairs and `t` that of all their tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from rdl_core.files import write_json
from rdl_core.progress import progress

__all__ = ["Packed", "PairTemplate", "TokenCorpus", "TokenStore", "pack", "plan_batches"]

TOKENS, OFFSETS, FINISHED = "tokens.bin", "offsets.bin", "store.json"
_CHUNK = 512  # texts handed to the tokenizer at once: it needs some 100 bytes for each token


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, without special tokens, as ragged rows."""

    flat: Tensor  #: ``[tokens]``, int32; mapped from disk int16, ids modulo 2**16, if these are enough.
    offsets: Tensor  #: int64 ``[rows + 1]``: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    @classmethod
    def build(
        cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path, *,
        max_tokens: int, total: int,
    ) -> TokenStore:  # fmt: skip
        """Tokenise `total` texts chunk by chunk into a folder, and map it.

        Special tokens are left out, texts cut to `max_tokens`. ``store.json`` comes once all is there.
        """
        encoder = copy.deepcopy(tokenizer.backend_tokenizer)  # in Rust; a fifth faster alone
        encoder.no_padding()
        encoder.enable_truncation(max_tokens)
        encoder.encode_special_tokens = tokenizer.split_special_tokens
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)  # unfinished from here on
        dtype = "int32" if max(encoder.get_vocab().values(), default=0) >= 2**16 else "int16"
        rest, n_tokens = progress(texts, total=total, what="tokenising"), 0
        with (folder / TOKENS).open("wb") as tokens, (folder / OFFSETS).open("wb") as offsets:
            offsets.write(bytes(8))
            while chunk := list(islice(rest, _CHUNK)):
                if wrong := [x for x in chunk if not isinstance(x, str)]:
                    raise TypeError(f"expected texts, got {wrong[0]!r}: fill it or leave it out")
                rows = [x.ids for x in encoder.encode_batch_fast(chunk, add_special_tokens=False)]
                ends = n_tokens + np.cumsum([len(x) for x in rows], dtype=np.int64)
                n_tokens = ends[-1]
                tokens.write(np.fromiter(chain.from_iterable(rows), np.int32).astype(dtype))
                offsets.write(ends)
        write_json(folder / FINISHED, {"dtype": dtype})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Map a finished store, however large; ValueError if there is none or its files disagree."""
        try:
            dtype = np.dtype(json.loads((folder / FINISHED).read_text())["dtype"])
            offsets = np.memmap(folder / OFFSETS, np.int64, mode="c")
            n_tokens, n_bytes = int(offsets[-1]), (folder / TOKENS).stat().st_size
            if dtype not in (np.int16, np.int32):  # earlier versions wrote uint16
                raise ValueError(f"ids of type {dtype}")
            if n_bytes != n_tokens * dtype.itemsize:
                raise ValueError(f"{n_bytes} bytes for {n_tokens} tokens")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no whole token store ({error}): build it again") from None
        # No file without tokens can be mapped.
        ids = np.memmap(folder / TOKENS, dtype, mode="c") if n_tokens else np.empty(0, dtype)
        return cls(flat=torch.from_numpy(ids), offsets=torch.from_numpy(offsets))

    @classmethod
    def of_texts(cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TokenStore:
        """A store in memory of a few texts, such as one query's passages."""
        texts = list(texts)  # none at all is an error to transformers
        return cls.from_lists(texts and tokenizer(texts, add_special_tokens=False)["input_ids"])

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenStore:
        """A store in memory from lists of token ids."""
        flat = torch.tensor([*chain.from_iterable(rows)], dtype=torch.int32)
        return cls(flat=flat, offsets=torch.tensor([0, *map(len, rows)]).cumsum(0))

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

    def pieces(self, rows: Tensor, size: int, most: int) -> tuple[TokenStore, Tensor, Tensor]:
        """The first `most` pieces of `size` tokens of each row, at least one, the last perhaps shorter.

        Gives a store of pieces, sharing the ids, their rows in it, and for each its place in `rows`.
        """
        places = torch.arange(len(rows), device=rows.device)
        if most == 1:  # the row itself, which is cut when it is gathered
            return self, rows, places
        counts = (self.lengths(rows, size * most) - 1).clamp(min=0) // size + 1
        source = places.repeat_interleave(counts)
        numbers = _ragged_positions(torch.zeros_like(counts), counts, len(source))
        starts = self.offsets[rows[source]] + size * numbers
        ends = torch.minimum(starts + size, self.offsets[rows[source] + 1])
        own = TokenStore(self.flat, torch.stack([starts, ends], 1).flatten())  # odd rows are no pieces
        return own, 2 * torch.arange(len(source), device=rows.device), source


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
        stores = [TokenStore.of_texts(x, tokenizer) for x in (queries["query"], passages["text"])]
        return cls(pd.Index(queries["query_id"]), stores[0], pd.Index(passages["doc_id"]), stores[1])


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
        segments = encoded.get("token_type_ids", [0] * len(ids))  # requested, all models would get some
        query, passage, n = text_of.index(0), text_of.index(1), text_of.count(0)
        first, second = segments[query], segments[passage]
        if segments != [first] * passage + [second] * (len(ids) - passage):
            got = f"{segments} for tokens {ids}: use an encoder of BERT's or RoBERTa's form"
            raise ValueError(f"expected segments {first} up to the passage, then {second}, got {got}")
        parts = ids[:query], ids[query + n : passage], ids[passage + n :]
        return cls(*map(tuple, parts), segments=(first, second))

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
    for first, special in (
        (starts, template.before), (starts + passage_at - between, template.between),
        (ends - after, template.after),
    ):  # fmt: skip
        for i, token in enumerate(special):  # numbers need no copy to the device
            input_ids.index_fill_(0, first + i, token)
    for store, rows, cut, first, n in (
        (queries, query_rows, query_lengths, starts + before, n_query),
        (passages, passage_rows, passage_lengths, starts + passage_at, n_passage),
    ):
        input_ids.index_copy_(0, _ragged_positions(first, cut, n), store.gather(rows, cut, n))
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


def _ragged_positions(starts: Tensor, lengths: Tensor, n_tokens: int) -> Tensor:
    """``starts[i], starts[i] + 1, ...`` for `lengths[i]` places each, end to end; int64 ``[t]``."""
    shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths, output_size=n_tokens)
    return torch.arange(n_tokens, device=starts.device) + shift
