"""The student: a cross-encoder over packed sequences.

A thin wrapper around transformers' ``AutoModelForSequenceClassification`` with one output. The
weights and the layers are transformers' own, so that a saved folder loads anywhere; only the way
through them is ours:

- sequences come packed, end to end in one vector, so that no linear layer computes padding;
- attention is computed per sequence: by `varlen_attn` in half precision on CUDA, else by scaled
  dot-product attention over the sequences of the batch, unpacked for that one step;
- the last layer computes only what the score needs, the first position of each sequence.

Attention dropout is left out (the packed kernels have none); hidden dropout is as configured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rdl_core.data.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches
from rdl_core.devices import PRECISIONS

__all__ = ["ARCHITECTURES", "CrossEncoder"]

_ATTENTION = "rdl_packed"
#: Model types whose layers have BERT's parts under BERT's names.
ARCHITECTURES = ("bert", "electra", "roberta", "xlm-roberta")


class CrossEncoder(nn.Module):
    """Scores of (query, passage) pairs from one transformer encoder.

    Args:
        model: A sequence classifier with one output and an architecture of `ARCHITECTURES`.
        tokenizer: Its fast tokenizer.
        query_tokens: Longer queries are cut to this many tokens.
        passage_tokens: Longer passages are cut to this many tokens.

    Raises:
        ValueError: Another architecture, more than one output, or lengths past the encoder's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        query_tokens: int,
        passage_tokens: int,
    ) -> None:
        super().__init__()
        if model.config.model_type not in ARCHITECTURES:
            raise ValueError(
                f"expected an encoder of type {', '.join(ARCHITECTURES)}, got "
                f"{model.config.model_type!r}: choose another encoder"
            )
        if model.config.num_labels != 1:
            raise ValueError(
                f"expected a model with one output, the score, got {model.config.num_labels} "
                "outputs: load it with num_labels=1"
            )
        model.set_attn_implementation(_ATTENTION)
        self.model = model
        self.tokenizer = tokenizer
        self.query_tokens = query_tokens
        self.passage_tokens = passage_tokens
        self.template = PairTemplate.of(tokenizer)
        needed = query_tokens + passage_tokens + self.template.n_tokens
        if needed > tokenizer.model_max_length:
            raise ValueError(
                f"expected at most {tokenizer.model_max_length} tokens for this encoder, but "
                f"query_tokens + passage_tokens + {self.template.n_tokens} special ones are "
                f"{needed}: lower one of them"
            )

    @classmethod
    def from_pretrained(
        cls, encoder: str | Path, *, query_tokens: int, passage_tokens: int
    ) -> CrossEncoder:
        """Load weights from a folder or the Hugging Face hub; a missing head is drawn at random.

        Args:
            encoder: Folder or model id. Weights are read from safetensors only, and no code that
                comes with a model is run.
            query_tokens: Longer queries are cut to this many tokens.
            passage_tokens: Longer passages are cut to this many tokens.
        """
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder, num_labels=1, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        return cls(model, tokenizer, query_tokens=query_tokens, passage_tokens=passage_tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def forward(self, packed: Packed) -> Tensor:
        """Score packed sequences.

        Args:
            packed: `n` sequences on this model's device.

        Returns:
            float32 ``[n]`` logits, higher is better, whatever precision autocast computes in.
        """
        base = self.model.base_model
        layout = _Layout.of(packed)
        # RoBERTa counts positions from the one after its padding id.
        shift = base.embeddings.padding_idx + 1 if "roberta" in self.model.config.model_type else 0
        hidden = base.embeddings(
            input_ids=packed.input_ids[None],
            token_type_ids=packed.segment_ids[None],
            position_ids=packed.position_ids[None] + shift,
        )
        if hasattr(base, "embeddings_project"):  # ELECTRA's small models
            hidden = base.embeddings_project(hidden)
        *layers, last = base.encoder.layer
        for layer in layers:
            hidden = layer(hidden, layout=layout)
        first = _first_positions(last, hidden, layout)
        # In bfloat16, scores of a list of 100 tie by the handful, and ties are settled elsewhere.
        with torch.autocast(self.device.type, enabled=False):
            return self._head(first.float()).squeeze(-1)

    def score(
        self,
        queries: TokenStore,
        passages: TokenStore,
        query_rows: Tensor,
        passage_rows: Tensor,
        *,
        token_budget: int,
        precision: str = "float32",
    ) -> Tensor:
        """Score pairs in batches of like length; differentiable unless gradients are off.

        Args:
            queries: Token store of the queries, on this model's device.
            passages: Token store of the passages, on this model's device.
            query_rows: int64 ``[n]``, rows of `queries`.
            passage_rows: int64 ``[n]``, rows of `passages`.
            token_budget: Most tokens in one batch.
            precision: A key of `PRECISIONS`.

        Returns:
            float32 ``[n]``, in the order of the rows.
        """
        lengths = queries.lengths(query_rows, self.query_tokens)
        lengths = lengths + passages.lengths(passage_rows, self.passage_tokens)
        batches = plan_batches((lengths + self.template.n_tokens).cpu(), token_budget)
        dtype = PRECISIONS[precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            scores = [
                self(
                    pack(
                        queries, passages, query_rows[batch], passage_rows[batch],
                        template=self.template, query_tokens=self.query_tokens,
                        passage_tokens=self.passage_tokens,
                    )
                )
                for batch in (b.to(self.device) for b in batches)
            ]
        order = torch.cat(batches).to(self.device)
        return torch.empty_like(torch.cat(scores)).index_copy(0, order, torch.cat(scores))

    def head_names(self) -> set[str]:
        """Names of the weights that turn the first position into a score, in the wrapped model."""
        return {
            name
            for name, _ in self.model.named_parameters()
            if name.startswith("classifier.") or ".pooler." in name
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that transformers and sentence-transformers load unaided."""
        self.model.config.sentence_transformers = {
            "activation_fn": "torch.nn.modules.linear.Identity"  # scores are logits there as here
        }
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _head(self, first: Tensor) -> Tensor:
        """Logits from the first position's last hidden state, ``[n, 1, hidden]`` to ``[n, 1]``."""
        if pooler := getattr(self.model.base_model, "pooler", None):
            return self.model.classifier(self.model.dropout(pooler(first)))
        return self.model.classifier(first)


@dataclass(frozen=True)
class _Layout:
    """Where each token of a packed batch stands in ``[n, max_length]``; made once per batch."""

    packed: Packed
    slots: Tensor
    """int64 ``[t]``: sequence * max_length + position."""
    key_mask: Tensor
    """bool ``[n, 1, 1, max_length]``: True where a sequence has a token."""

    @classmethod
    def of(cls, packed: Packed) -> _Layout:
        lengths = packed.cu_seqlens.diff()
        n_tokens = len(packed.input_ids)
        places = torch.arange(packed.max_length, device=lengths.device)
        starts = torch.arange(len(lengths), device=lengths.device) * packed.max_length
        sequence_start = torch.repeat_interleave(starts, lengths, output_size=n_tokens)
        key_mask = (places < lengths[:, None])[:, None, None, :]
        return cls(packed, sequence_start + packed.position_ids, key_mask)

    def unpack(self, flat: Tensor) -> Tensor:
        """``[t, heads, size]`` to ``[n, heads, max_length, size]``, zeros where there is nothing."""
        n, length = len(self.packed.cu_seqlens) - 1, self.packed.max_length
        padded = flat.new_zeros(n * length, *flat.shape[1:]).index_copy(0, self.slots, flat)
        return padded.view(n, length, *flat.shape[1:]).transpose(1, 2)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: _Layout,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within each sequence, in the form transformers' AttentionInterface asks for.

    Takes ``[1, heads, t, size]`` and returns ``[1, t, heads, size]``.
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if _has_varlen(query):
        cu, longest = layout.packed.cu_seqlens, layout.packed.max_length
        return varlen_attn(query, key, value, cu, cu, longest, longest, scale=scaling)[None], None
    padded = scaled_dot_product_attention(
        *map(layout.unpack, (query, key, value)), attn_mask=layout.key_mask, scale=scaling
    )
    return padded.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)[None], None


AttentionInterface.register(_ATTENTION, _packed_attention)


def _first_positions(layer: nn.Module, hidden: Tensor, layout: _Layout) -> Tensor:
    """A BERT layer computed for the first position of each sequence: ``[n, 1, hidden]``."""
    attention = layer.attention.self
    cu_seqlens = layout.packed.cu_seqlens
    hidden = hidden[0]
    first = hidden.index_select(0, cu_seqlens[:-1])
    query, key, value = (
        projection(x).unflatten(-1, (-1, attention.attention_head_size))
        for projection, x in (
            (attention.query, first), (attention.key, hidden), (attention.value, hidden),
        )
    )
    if _has_varlen(query):
        one_each = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        context = varlen_attn(
            query, key, value, one_each, cu_seqlens, 1, layout.packed.max_length,
            scale=attention.scaling,
        )
    else:
        context = scaled_dot_product_attention(
            query[:, :, None], layout.unpack(key), layout.unpack(value),
            attn_mask=layout.key_mask, scale=attention.scaling,
        )
    attended = layer.attention.output(context.flatten(1), first)
    return layer.feed_forward_chunk(attended)[:, None]


def _has_varlen(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
