"""Text as tokens: tokenised once, kept flat, gathered and packed on the device.

A `TokenStore` holds every text of a collection as one flat vector of token ids and a vector of
offsets, on disk as two memory-mapped files. Any set of its rows is gathered by arithmetic on the
offsets, without a Python loop. `pack` builds the sequences that a cross-encoder reads,
``[CLS] query [SEP] passage [SEP]``, end to end in one vector: no padding, no collating.

In shapes, `n` is the number of pairs and `t` that of the tokens in all of them together.

>>> store = TokenStore.from_lists([[7, 8, 9], [], [5]])
>>> store.gather(torch.tensor([2, 0]), max_tokens=2)
(tensor([5, 7, 8]), tensor([1, 2]))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rdl_core.progress import progress

__all__ = ["Packed", "PairTemplate", "TokenStore", "pack", "plan_batches"]

_CHUNK = 4096  # texts handed to the tokenizer at once; it spreads them over its own threads


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, without special tokens, as ragged rows."""

    flat: Tensor
    """int16 ``[tokens]``: ids modulo 2**16, or int32 where the vocabulary is larger."""
    offsets: Tensor
    """int64 ``[rows + 1]``: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``."""

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        max_tokens: int,
        total: int,
    ) -> TokenStore:
        """Tokenise texts in order and write them to a folder, a chunk at a time.

        Args:
            texts: One text per row.
            tokenizer: A fast tokenizer; special tokens are left out.
            folder: Gets ``tokens.bin``, ``offsets.npy`` and, last of all, ``store.json``.
            max_tokens: Longer texts are cut to this many tokens.
            total: Number of texts, for the progress display.

        Returns:
            The store, memory-mapped from the folder.
        """
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        folder.mkdir(parents=True, exist_ok=True)
        offsets = [0]
        with (folder / "tokens.bin").open("wb") as file:
            chunks = progress(_chunks(texts), total=-(-total // _CHUNK), what="tokenising")
            for chunk in chunks:
                rows = tokenizer(
                    chunk, add_special_tokens=False, truncation=True, max_length=max_tokens,
                    return_attention_mask=False, return_token_type_ids=False,
                )["input_ids"]
                for row in rows:
                    offsets.append(offsets[-1] + len(row))
                np.concatenate([np.asarray(row, dtype) for row in rows]).tofile(file)
        np.save(folder / "offsets.npy", np.asarray(offsets, np.int64))
        meta = {"dtype": np.dtype(dtype).name, "rows": len(offsets) - 1, "max_tokens": max_tokens}
        (folder / "store.json").write_text(json.dumps(meta, indent=1))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Map a store that `build` wrote; reads nothing but its offsets.

        Raises:
            ValueError: The folder holds no finished store, or one whose files disagree.
        """
        try:
            meta = json.loads((folder / "store.json").read_text())
        except FileNotFoundError:
            raise ValueError(
                f"expected a finished token store in {folder}, found no store.json: build it again"
            ) from None
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        tokens = np.memmap(folder / "tokens.bin", meta["dtype"], "c") if offsets[-1] else np.empty(0, meta["dtype"])
        if len(tokens) != offsets[-1] or len(offsets) != meta["rows"] + 1:
            raise ValueError(
                f"token store {folder} should hold {offsets[-1]} tokens in {meta['rows']} rows, but "
                f"has {len(tokens)} in {len(offsets) - 1}: delete the folder and build it again"
            )
        signed = tokens.view(np.int16) if tokens.dtype == np.uint16 else tokens
        return cls(flat=torch.from_numpy(signed), offsets=torch.from_numpy(offsets))

    @classmethod
    def of_texts(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TokenStore:
        """A store in memory of a few texts, such as one query's passages."""
        return cls.from_lists(tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenStore:
        """A store in memory from lists of token ids below 2**16."""
        lengths = torch.tensor([0, *map(len, rows)], dtype=torch.int64)
        ids = np.asarray([i for row in rows for i in row], np.uint16).view(np.int16)
        return cls(flat=torch.from_numpy(ids.copy()), offsets=lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def to(self, device: torch.device | str) -> TokenStore:
        """The same store on another device."""
        return TokenStore(flat=self.flat.to(device), offsets=self.offsets.to(device))

    def lengths(self, rows: Tensor, max_tokens: int) -> Tensor:
        """Tokens in each row, at most `max_tokens`; int64, shaped like `rows`."""
        return (self.offsets[rows + 1] - self.offsets[rows]).clamp(max=max_tokens)

    def gather(self, rows: Tensor, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids of some rows, end to end.

        Args:
            rows: int64 ``[n]``, in any order, repeats allowed.
            max_tokens: Each row is cut to this many tokens.

        Returns:
            int64 ``[t]`` ids and int64 ``[n]`` lengths.
        """
        lengths = self.lengths(rows, max_tokens)
        return self._take(_ragged_positions(self.offsets[rows], lengths)), lengths

    def _take(self, positions: Tensor) -> Tensor:
        ids = self.flat[positions].long()
        return ids & 0xFFFF if self.flat.dtype == torch.int16 else ids


@dataclass(frozen=True)
class PairTemplate:
    """Special tokens around a query and a passage, as an encoder was trained to see them."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int]
    """Segment id of the query's part, ``between`` included, and of the passage's part."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
        """Read the template off the tokenizer's own treatment of a pair."""
        encoded = tokenizer("a", "b", return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        first = special.index(0)
        second = len(special) - 1 - special[::-1].index(0)
        segments = encoded["token_type_ids"]
        return cls(
            before=tuple(ids[:first]),
            between=tuple(ids[first + 1 : second]),
            after=tuple(ids[second + 1 :]),
            segments=(segments[first], segments[second]),
        )

    @property
    def n_tokens(self) -> int:
        """Special tokens per pair."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Packed:
    """Sequences end to end, as variable-length attention takes them."""

    input_ids: Tensor
    """int64 ``[t]``."""
    position_ids: Tensor
    """int64 ``[t]``, from 0 in every sequence."""
    segment_ids: Tensor
    """int64 ``[t]``."""
    cu_seqlens: Tensor
    """int32 ``[n + 1]``: where each sequence starts, and the end of the last."""
    max_length: int
    """Tokens in the longest sequence."""


def pack(
    queries: TokenStore,
    passages: TokenStore,
    query_rows: Tensor,
    passage_rows: Tensor,
    *,
    template: PairTemplate,
    query_tokens: int,
    passage_tokens: int,
) -> Packed:
    """Build the sequences of some pairs, on the device that holds the stores.

    Args:
        queries: Token store of the queries.
        passages: Token store of the passages.
        query_rows: int64 ``[n]``, rows of `queries`.
        passage_rows: int64 ``[n]``, rows of `passages`.
        template: The encoder's special tokens.
        query_tokens: Longest query, in tokens.
        passage_tokens: Longest passage, in tokens.

    Returns:
        The packed sequences. Their total and their longest length are read by the host, once.

    >>> template = PairTemplate(before=(1,), between=(2,), after=(2,), segments=(0, 1))
    >>> store, rows = TokenStore.from_lists([[7, 8], [9]]), torch.tensor([0, 1])
    >>> packed = pack(store, store, rows, rows, template=template, query_tokens=1, passage_tokens=2)
    >>> packed.input_ids.tolist(), packed.cu_seqlens.tolist()
    ([1, 7, 2, 7, 8, 2, 1, 9, 2, 9, 2], [0, 6, 11])
    """
    device = queries.flat.device
    parts = (
        _special(template.before, len(query_rows), device),
        queries.gather(query_rows, query_tokens),
        _special(template.between, len(query_rows), device),
        passages.gather(passage_rows, passage_tokens),
        _special(template.after, len(query_rows), device),
    )
    lengths = torch.stack([part_lengths for _, part_lengths in parts], dim=1)
    in_sequence = lengths.cumsum(1) - lengths
    total = lengths.sum(1)
    starts = total.cumsum(0) - total
    n_tokens = sum(len(ids) for ids, _ in parts)
    input_ids = torch.empty(n_tokens, dtype=torch.int64, device=device)
    segment_ids = torch.empty_like(input_ids)
    position_ids = torch.empty_like(input_ids)
    for i, (ids, part_lengths) in enumerate(parts):
        places = _ragged_positions(starts + in_sequence[:, i], part_lengths)
        input_ids[places] = ids
        segment_ids[places] = template.segments[0 if i < 3 else 1]
        position_ids[places] = _ragged_positions(in_sequence[:, i], part_lengths)
    cu_seqlens = torch.nn.functional.pad(total.cumsum(0), (1, 0)).int()
    return Packed(input_ids, position_ids, segment_ids, cu_seqlens, int(total.max()))


def plan_batches(lengths: Tensor, token_budget: int) -> list[Tensor]:
    """Cut pairs, sorted by length, into batches of about equal cost.

    Args:
        lengths: int64 ``[n]`` on the CPU, tokens in each pair.
        token_budget: Most tokens in a batch, counting every pair as long as the batch's longest;
            a longer single pair gets a batch of its own.

    Returns:
        Indices into `lengths`, each exactly once, the longest pairs first, so that memory runs
        out at the first batch or never.

    >>> plan_batches(torch.tensor([3, 9, 4, 4]), token_budget=9)
    [tensor([1]), tensor([2, 3]), tensor([0])]
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        size = max(1, token_budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def _ragged_positions(starts: Tensor, lengths: Tensor) -> Tensor:
    """``starts[i], starts[i] + 1, ...`` for `lengths[i]` places each, end to end; int64 ``[t]``."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift


def _special(ids: tuple[int, ...], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor(ids, dtype=torch.int64, device=device)
    return tokens.repeat(n), torch.full((n,), len(ids), device=device)
