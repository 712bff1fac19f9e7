"""A student of an architecture of one's own: it begins as the bi-encoder whose weights it starts from.

A fresh head on [CLS] must learn to match words with passages. A bi-encoder's weights can do so
already: its score is the cosine of the means over two texts' states. This student reads query and
passage together, as any cross-encoder, and scores

    scale * cosine(mean of the query's states, mean of the passage's states) + head([CLS])

with a head that is zero at first, so that it ranks before any training. Import this file, and
rdl_core and transformers know the architecture: `CrossEncoder.from_pretrained` loads what was saved,
and every command works on it from a script that imports this file first. To train it on 20 lists:

    from rdl_core import RankedLists, StageConfig, TokenCorpus
    from rdl_core.distill import distill
    from similarity_head import from_bi_encoder

    student = from_bi_encoder("all-MiniLM-L6-v2", query_tokens=20, passage_tokens=96)
    corpus = TokenCorpus.of(queries, passages, student.tokenizer)
    lists = RankedLists.from_frame(candidates, corpus)  # with teacher_rank
    distill(student, lists, StageConfig(steps=20, learning_rate=7e-5), seed=0, folder=Path("own"))

What this head brought on TREC Deep Learning stands in results/trec-dl/README.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

from rdl_core.attention import Layout
from rdl_core.cross_encoder import ARCHITECTURES, CrossEncoder, bert_states, model_path

__all__ = ["BertSimilarityConfig", "BertSimilarityForSequenceClassification", "from_bi_encoder"]


@strict
class BertSimilarityConfig(BertConfig):
    """BERT's configuration, and the factor on the cosine."""

    model_type = "bert-similarity"
    similarity_scale: float = 20.0


class BertSimilarityForSequenceClassification(BertPreTrainedModel):
    """The architecture as transformers calls it, on padded sequences."""

    config_class = BertSimilarityConfig

    def __init__(self, config: BertSimilarityConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: object
    ) -> SequenceClassifierOutput:
        """Logits ``[n, 1]`` of padded sequences, ``[n, length]``."""
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        of_query = (attention_mask * (1 - token_type_ids)).to(states.dtype)
        of_passage = (attention_mask * token_type_ids).to(states.dtype)
        sums = torch.stack([of_query, of_passage], dim=1) @ states
        counts = torch.stack([of_query.sum(1), of_passage.sum(1)], dim=1)
        return SequenceClassifierOutput(logits=self.head(sums, counts, states[:, 0]))

    def head(self, sums: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        """Logits ``[n, 1]``.

        Args:
            sums: ``[n, 2, hidden]``, over the states of the query, with [CLS], and of the passage.
            counts: ``[n, 2]``, how many states these are.
            first: ``[n, hidden]``, the state of [CLS]. It counts for the passage, too, as a
                bi-encoder has one before either text.
        """
        query = sums[:, 0] / counts[:, :1]
        passage = (sums[:, 1] + first) / (counts[:, 1:] + 1)
        similarity = self.config.similarity_scale * cosine_similarity(query, passage, dim=1)
        return similarity[:, None] + self.classifier(self.dropout(first))


def _encode(model: BertSimilarityForSequenceClassification, layout: Layout) -> Tensor:
    """From a packed batch, side by side with counts behind the sums: ``[n, 3, hidden + 1]``."""
    packed, n = layout.packed, len(layout.lengths)
    states = bert_states(model, layout, model.base_model.encoder.layer).float()
    states = nn.functional.pad(states, (0, 1), value=1.0)  # summed up, the ones are the counts
    text = 2 * (layout.slots // packed.max_length) + packed.segment_ids
    sums = states.new_zeros(2 * n, states.shape[1]).index_add(0, text, states)
    first = states.index_select(0, packed.cu_seqlens[:-1])
    return torch.cat([sums.unflatten(0, (n, 2)), first[:, None]], dim=1)


def _head(model: BertSimilarityForSequenceClassification, pooled: Tensor) -> Tensor:
    return model.head(pooled[:, :2, :-1], pooled[:, :2, -1], pooled[:, 2, :-1])


_MODEL = BertSimilarityForSequenceClassification
ARCHITECTURES[BertSimilarityConfig.model_type] = (_encode, _head)
AutoConfig.register(BertSimilarityConfig.model_type, BertSimilarityConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BertSimilarityConfig, _MODEL, exist_ok=True)


def from_bi_encoder(
    name: str | Path, *, query_tokens: int, passage_tokens: int, scale: float = 20.0
) -> CrossEncoder:
    """A student that scores, before any training, by the states of a bi-encoder of type BERT.

    Args:
        name: As `CrossEncoder.from_pretrained` takes it; a head that it has is not used.
        query_tokens: Longer queries are cut to this many tokens.
        passage_tokens: The same of passages.
        scale: Factor on the cosine.
    """
    path = model_path(name)
    bert = AutoConfig.from_pretrained(path)
    if bert.model_type != "bert":
        raise ValueError(f"expected an encoder of type bert, got {bert.model_type!r}: choose another")
    fields = bert.to_diff_dict() | {"num_labels": 1, "similarity_scale": scale}
    fields["rdl_core"] = {"query_tokens": query_tokens, "passage_tokens": passage_tokens}
    config = BertSimilarityConfig(**{key: x for key, x in fields.items() if key != "model_type"})
    model = _MODEL.from_pretrained(path, config=config, dtype=torch.float32, use_safetensors=True)
    for weight in model.classifier.parameters():
        nn.init.zeros_(weight)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return CrossEncoder(model, tokenizer, query_tokens=query_tokens, passage_tokens=passage_tokens)
