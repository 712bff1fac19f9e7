"""The student: a cross-encoder over packed sequences.

A thin wrapper around transformers' ``AutoModelForSequenceClassification`` with one output. The
weights and the layers are transformers' own, so that a saved folder loads anywhere; only the way
through them is ours:

- sequences come packed, end to end in one vector, so that no linear layer computes padding;
- attention stays within each sequence (`rdl_core.attention`);
- the last layer computes only what the score needs: the first position of each sequence, or all
  of them where means are taken (ModernBERT, `rdl_core.similarity`).

Attention dropout is left out (the packed kernels have none); hidden dropout is as configured.

In shapes, `n` is the number of sequences and `t` that of the tokens in all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from rdl_core.attention import (
    ATTENTION,
    Layout,
    attend_first,
    attend_first_to_states,
    has_varlen,
)
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches
from rdl_core.devices import PRECISIONS
from rdl_core.similarity import BertSimilarityConfig, with_similarity

__all__ = ["ARCHITECTURES", "HEADS", "CrossEncoder"]


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
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.tokenizer = tokenizer
        self.query_tokens = query_tokens
        self.passage_tokens = passage_tokens
        self.template = PairTemplate.of(tokenizer)
        #: Batches are filled up to a multiple of so many tokens.
        self.fill = 1
        #: How batches are gone through: takes what scores one, and the batches; ends may come in any
        #: order, results in theirs.
        self.each: Callable[..., Iterable[Tensor]] = map
        #: How many batches that way has in hand at a time.
        self.at_once = 1
        self._checkpointing = False
        # Many tokenizers name no limit, and some a larger one than the encoder's.
        table = model.config.max_position_embeddings - _first_position(model)
        longest = min(tokenizer.model_max_length, table)
        needed = query_tokens + passage_tokens + self.template.n_tokens
        if needed > longest:
            raise ValueError(
                f"expected at most {longest} tokens for this encoder, but "
                f"query_tokens + passage_tokens + {self.template.n_tokens} special ones are "
                f"{needed}: lower one of them"
            )

    @classmethod
    def from_pretrained(
        cls, encoder: str | Path, *, query_tokens: int, passage_tokens: int, head: str = "own"
    ) -> CrossEncoder:
        """Load weights from a folder or the Hugging Face hub; a missing head is drawn at random.

        Args:
            encoder: Folder or model id. Weights are read from safetensors only, and no code that
                comes with a model is run.
            query_tokens: Longer queries are cut to this many tokens.
            passage_tokens: Longer passages are cut to this many tokens.
            head: A member of `HEADS`; a saved similarity is one under either name.

        Raises:
            ValueError: Another head, or a similarity behind an encoder that is no BERT.
        """
        if head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}; got {head!r}")
        config = AutoConfig.from_pretrained(encoder, num_labels=1, trust_remote_code=False)
        begins = head == "similarity" and not isinstance(config, BertSimilarityConfig)
        if begins:
            config = with_similarity(config)
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder, config=config, dtype=torch.float32, use_safetensors=True,
            trust_remote_code=False,
        )
        if begins:  # also where the encoder had a head of its own, which said something else
            for weight in model.classifier.parameters():
                nn.init.zeros_(weight)
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
        encode, head = _WAYS[self.model.config.model_type]
        pooled = encode(self.model, Layout(packed), self._run)
        # In bfloat16, scores of a list of 100 tie by the handful, and ties are settled elsewhere.
        with torch.autocast(self.device.type, enabled=False):
            return head(self.model, pooled.float()).squeeze(-1).clone()  # FSDP wants no view

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
        lengths = self.pair_lengths(queries, passages, query_rows, passage_rows)
        batches = plan_batches(lengths.cpu(), token_budget, among=self.at_once)
        dtype = PRECISIONS[precision]
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def score_batch(batch: Tensor) -> Tensor:
            packed = pack(
                queries, passages, query_rows[batch], passage_rows[batch], template=self.template,
                query_tokens=self.query_tokens, passage_tokens=self.passage_tokens,
            )  # fmt: skip
            inference, gradients = modes  # of the caller; each thread has its own
            grad = torch.inference_mode() if inference else torch.set_grad_enabled(gradients)
            with grad, torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                return self(packed.filled(self.fill))[: len(batch)]

        scores = list(self.each(score_batch, [batch.to(self.device) for batch in batches]))
        order = torch.cat(batches).to(self.device)
        return torch.empty_like(torch.cat(scores)).index_copy(0, order, torch.cat(scores))

    def pair_lengths(
        self, queries: TokenStore, passages: TokenStore, query_rows: Tensor, passage_rows: Tensor
    ) -> Tensor:
        """Tokens in the sequence of each pair, special ones included; int64 ``[n]``."""
        lengths = queries.lengths(query_rows, self.query_tokens)
        lengths = lengths + passages.lengths(passage_rows, self.passage_tokens)
        return lengths + self.template.n_tokens

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Keep only each layer's input in training and compute the rest again for its gradient.

        One vector a token and layer instead of some twenty, for up to a third more time; the
        gradients are the same, also with dropout.
        """
        self._checkpointing = on

    def layers(self) -> list[nn.Module]:
        """The encoder's layers that are called as a whole: all but the last."""
        base = self.model.base_model
        return list(base.encoder.layer if hasattr(base, "encoder") else base.layers)[:-1]

    def unprojected(self) -> list[str]:
        """Names, in the wrapped model, of linear layers whose weights scoring reads as they are."""
        encode, _ = _WAYS[self.model.config.model_type]
        if encode is not _encode_bert:
            return []
        last = self.model.base_model.encoder.layer[-1].attention.self
        return [
            name
            for name, module in self.model.named_modules()
            if module is last.key or module is last.value
        ]

    def head_names(self) -> set[str]:
        """Names, in the wrapped model, of the weights after the encoder; BERT's pooler included."""
        encoder = f"{self.model.base_model_prefix}."
        return {
            name
            for name, _ in self.model.named_parameters()
            if not name.startswith(encoder) or name.startswith(f"{encoder}pooler.")
        }

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a folder that transformers and sentence-transformers load unaided.

        Args:
            folder: Made where it is missing.
            weights: The wrapped model's, by name, where it does not hold them whole itself.
        """
        self.model.config.sentence_transformers = {
            "activation_fn": "torch.nn.modules.linear.Identity"  # scores are logits there as here
        }
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)

    def _run(self, layer: nn.Module, hidden: Tensor, **inputs: object) -> Tensor:
        if self._checkpointing and self.training:
            return checkpoint(layer, hidden, use_reentrant=False, **inputs)
        return layer(hidden, **inputs)


# --- the way through each architecture ----------------------------------------------------------


def _first_position(model: PreTrainedModel) -> int:
    """Where the position table begins: RoBERTa counts from the one after its padding id."""
    return model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0


def _through_bert(
    model: PreTrainedModel, layout: Layout, run: Callable[..., Tensor], layers: Iterable[nn.Module]
) -> Tensor:
    """States ``[t, hidden]`` behind some layers like BERT's."""
    base, packed = model.base_model, layout.packed
    hidden = base.embeddings(
        input_ids=packed.input_ids[None],
        token_type_ids=packed.segment_ids[None],
        position_ids=packed.position_ids[None] + _first_position(model),
    )
    if hasattr(base, "embeddings_project"):  # ELECTRA's small models
        hidden = base.embeddings_project(hidden)
    for layer in layers:
        hidden = run(layer, hidden, layout=layout)
    return hidden[0]


def _encode_bert(model: PreTrainedModel, layout: Layout, run: Callable[..., Tensor]) -> Tensor:
    """Last hidden state of the first positions, ``[n, 1, hidden]``."""
    *layers, last = model.base_model.encoder.layer
    hidden = _through_bert(model, layout, run, layers)
    attention = last.attention.self
    first = hidden.index_select(0, layout.packed.cu_seqlens[:-1])
    heads = (-1, attention.attention_head_size)
    query = attention.query(first).unflatten(-1, heads)
    # In training, alike with gradients and without: a step scores its lists twice.
    if model.training or hidden.requires_grad or has_varlen(query):
        key, value = (x(hidden).unflatten(-1, heads) for x in (attention.key, attention.value))
        attended = attend_first(attention, query, key, value, layout)
    else:
        attended = attend_first_to_states(query, hidden, attention.key, attention.value, layout)
    attended = last.attention.output(attended, first)
    return last.feed_forward_chunk(attended)[:, None]


def _head_bert(model: PreTrainedModel, first: Tensor) -> Tensor:
    if pooler := getattr(model.base_model, "pooler", None):  # BERT's own
        first = model.dropout(pooler(first))
    return model.classifier(first)


def _encode_all_of_bert(
    model: PreTrainedModel, layout: Layout, run: Callable[..., Tensor]
) -> Tensor:
    """What a similarity's head takes, side by side, counts behind sums: ``[n, 3, hidden + 1]``."""
    packed = layout.packed
    hidden = _through_bert(model, layout, run, model.base_model.encoder.layer)
    states = nn.functional.pad(hidden.float(), (0, 1), value=1.0)
    n = len(layout.lengths)
    part = 2 * (layout.slots // packed.max_length) + packed.segment_ids
    sums = states.new_zeros(2 * n, states.shape[1]).index_add(0, part, states)
    first = states.index_select(0, packed.cu_seqlens[:-1])
    return torch.cat([sums.unflatten(0, (n, 2)), first[:, None]], dim=1)


def _head_similarity(model: PreTrainedModel, pooled: Tensor) -> Tensor:
    return model.head(pooled[:, :2, :-1], pooled[:, :2, -1], pooled[:, 2, :-1])


def _encode_modernbert(
    model: PreTrainedModel, layout: Layout, run: Callable[..., Tensor]
) -> Tensor:
    """Normalised last hidden state, pooled as the configuration says: ``[n, hidden]``."""
    base, packed = model.base_model, layout.packed
    hidden = base.embeddings(input_ids=packed.input_ids[None])
    rotations = {
        kind: base.rotary_emb(hidden, packed.position_ids[None], kind)
        for kind in set(model.config.layer_types)
    }
    *layers, last = base.layers
    for layer in layers:
        turn = rotations[layer.attention_type]
        hidden = run(layer, hidden, layout=layout, position_embeddings=turn)
    turn = rotations[last.attention_type]
    if model.config.classifier_pooling == "cls":
        return base.final_norm(_first_of_modernbert(last, hidden[0], turn, layout))
    hidden = base.final_norm(run(last, hidden, layout=layout, position_embeddings=turn))
    padded = layout.unpack(hidden.transpose(0, 1)) * layout.mask(None).mT
    return padded.sum(2).squeeze(1) / layout.lengths[:, None]


def _first_of_modernbert(
    layer: nn.Module, hidden: Tensor, turn: tuple[Tensor, Tensor], layout: Layout
) -> Tensor:
    """A layer computed for the first position of each sequence, but for its one projection."""
    attention, starts = layer.attn, layout.packed.cu_seqlens[:-1]
    projected = attention.Wqkv(layer.attn_norm(hidden)).unflatten(-1, (3, -1, attention.head_dim))
    query, key, value = projected.unbind(1)
    query, key = apply_rotary_pos_emb(query, key, *(x[0] for x in turn))
    attended = attend_first(attention, query.index_select(0, starts), key, value, layout)
    first = hidden.index_select(0, starts) + attention.out_drop(attention.Wo(attended))
    return first + layer.mlp(layer.mlp_norm(first))


def _head_modernbert(model: PreTrainedModel, pooled: Tensor) -> Tensor:
    return model.classifier(model.drop(model.head(pooled)))


#: How a packed batch becomes one vector per sequence, and how that becomes a logit ``[n, 1]``.
_WAYS = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), (_encode_bert, _head_bert)),
    "modernbert": (_encode_modernbert, _head_modernbert),
    BertSimilarityConfig.model_type: (_encode_all_of_bert, _head_similarity),
}
#: What stands behind an encoder: its architecture's own head, as it was saved or drawn at random, or one
#: that begins with what the encoder's states say by themselves.
HEADS = ("own", "similarity")
#: Model types that a student can have.
ARCHITECTURES = tuple(_WAYS)
