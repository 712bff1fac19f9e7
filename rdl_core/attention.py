"""Attention over packed sequences: each token attends within its own sequence.

By `varlen_attn` in half precision on CUDA; else by scaled dot-product attention over sequences unpacked
for that step. transformers' layers call it under the name `ATTENTION`. In shapes, `n` is the number of
sequences and `t` that of all their tokens.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rdl_core.tokens import Packed

__all__ = ["ATTENTION", "Layout", "attend_first", "attend_first_to_states", "has_varlen"]

ATTENTION = "rdl_packed"
_SHORT_TOKENS = 160


class Layout:
    """Where each token of a packed batch stands in ``[n, max_length]``; computed once per batch."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.lengths = packed.cu_seqlens.diff()  # int32 [n]

    @cached_property
    def slots(self) -> Tensor:
        """int64 ``[t]``: sequence * max_length + position."""
        sequence = (self.packed.position_ids == 0).cumsum(0) - 1
        return sequence * self.packed.max_length + self.packed.position_ids

    def mask(self, window: int | None) -> Tensor:
        """Bool ``[n, 1, 1 or max_length, max_length]``: True where a key is seen."""
        places = torch.arange(self.packed.max_length, device=self.lengths.device)
        taken = places < self.lengths[:, None]
        if window is None:
            return taken[:, None, None]
        near = (places[:, None] - places).abs() <= window
        # Empty places see everything: a row without a single key may become NaN in a kernel.
        return (near & taken[:, None] | ~taken[:, :, None])[:, None]

    @cached_property
    def tokens(self) -> Tensor:
        """int64 ``[n * max_length]``: the token at each place; at empty ones, the sequence's last."""
        starts = self.packed.cu_seqlens[:-1, None]
        places = torch.arange(self.packed.max_length, device=starts.device)
        return (starts + torch.minimum(places, self.lengths[:, None] - 1)).flatten().long()

    def unpack(self, flat: Tensor) -> Tensor:
        """``[t, heads, size]`` to ``[n, heads, max_length, size]``; the padding is masked later."""
        n, length = len(self.lengths), self.packed.max_length
        if flat.requires_grad:
            padded = flat.new_zeros(n * length, *flat.shape[1:]).index_copy_(0, self.slots, flat)
        else:  # a token of the sequence as padding takes one pass less
            padded = flat.index_select(0, self.tokens)
        return padded.view(n, length, *flat.shape[1:]).transpose(1, 2)


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    layout: Layout, scaling: float, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """As transformers calls it: takes ``[1, heads, t, size]``, gives ``[1, t, heads, size]``."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    window = getattr(module, "sliding_window", None)  # of ModernBERT's local layers
    window = None if window is None else window - 1  # transformers counts the token itself, too
    if has_varlen(query):
        where = (layout.packed.cu_seqlens,) * 2 + (layout.packed.max_length,) * 2
        sides = (-1, -1) if window is None else (window, window)
        return varlen_attn(query, key, value, *where, scale=scaling, window_size=sides)[None], None
    padded = _attend(module, *map(layout.unpack, (query, key, value)), layout.mask(window), scaling)
    return padded.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)[None], None


AttentionInterface.register(ATTENTION, _packed_attention)


def attend_first(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Attention of each sequence's first position alone, by `varlen_attn`; ``[n, heads * size]``.

    `query`: ``[n, heads, size]``; `key`, `value`: ``[t, heads, size]``.
    """
    cu, longest, scaling = layout.packed.cu_seqlens, layout.packed.max_length, query.shape[-1] ** -0.5
    one_each = torch.arange(len(cu), dtype=torch.int32, device=cu.device)
    return varlen_attn(query, key, value, one_each, cu, 1, longest, scale=scaling).flatten(1)


def attend_first_to_states(
    query: Tensor, states: Tensor, key: nn.Linear, value: nn.Linear, layout: Layout
) -> Tensor:
    """The same by its formula, from states ``[t, hidden]``, without computing their keys and values.

    A query times a key is the query, taken back through the keys' weights, times the state; a weighted
    sum of values is the value of the summed states.
    """
    heads, query = query.shape[1:], query * query.shape[-1] ** -0.5
    back = torch.einsum("nhs,hsw->nhw", query, key.weight.unflatten(0, heads))
    states = layout.unpack(states[:, None])[:, 0]
    logits = back @ states.mT + (query * key.bias.view(heads)).sum(-1, keepdim=True)
    seen = logits.masked_fill(~layout.mask(None)[:, 0], -torch.inf).softmax(-1)
    summed = torch.einsum("nhw,hsw->nhs", seen @ states, value.weight.unflatten(0, heads))
    return summed.flatten(1) + value.bias


def has_varlen(x: Tensor) -> bool:
    """Whether packed attention has a kernel on the device and in the precision of a tensor."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Scaled dot-product attention; by its formula where the CPU's kernel has a slow backward.

    In bfloat16, on one core: 18 sequences of 105 tokens take 71 ms by the kernel and 43 by the formula,
    8 of 256 take 61 and 98; on a Xeon with AMX 82 and 17, 52 and 38. Gradients are 1.6 and 2.0 % from
    float32's (a trained MiniLM).
    """
    slow = module.training and query.dtype == torch.bfloat16 and not query.is_cuda
    if not slow or key.shape[2] > _SHORT_TOKENS:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    # To add is quicker than to fill in place: a training step is 1.04 times as fast.
    unseen = query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return (query * scaling @ key.mT).add_(unseen).softmax(-1) @ value
