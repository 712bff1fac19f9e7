"""A cross-encoder that begins as the bi-encoder whose weights it starts from.

A fresh head on [CLS] says nothing, and learns to match words with passages in tens of thousands of
examples. A bi-encoder's weights know how to, but not at [CLS]: there a mean over a text's states
stands for it. `BertSimilarityForSequenceClassification` reads query and passage together, as any
cross-encoder, and says

    scale * cosine(mean of the query's states, mean of the passage's) + head([CLS])

where the head is zeros at first (`CrossEncoder.from_pretrained` sees to it), so that it ranks before
any training, and trains from there.

Importing this module makes the architecture known to transformers' Auto classes. It is also saved
beside the weights, so that it imports nothing of this package.
"""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

__all__ = ["BertSimilarityForSequenceClassification", "BertSimilarityConfig", "with_similarity"]


@strict
class BertSimilarityConfig(BertConfig):
    """BERT's configuration, and how much a cosine counts.

    >>> BertSimilarityConfig(hidden_size=8, num_attention_heads=2).similarity_scale
    20.0
    """

    model_type = "bert-similarity"
    similarity_scale: float = 20.0


class BertSimilarityForSequenceClassification(BertPreTrainedModel):
    """BERT with a similarity for its score, in the form of transformers' sequence classifiers.

    Args:
        config: With one label.
    """

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
        """Score padded sequences; all three inputs are integers ``[n, length]``, logits ``[n, 1]``.

        Whatever else libraries ask of a model's output does not change it.

        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> config = BertSimilarityConfig(num_labels=1, **sizes)
        >>> model = BertSimilarityForSequenceClassification(config).eval()
        >>> ids, yes = torch.tensor([[1, 7, 2, 8, 2]]), torch.ones(1, 5, dtype=torch.int64)
        >>> model(ids, attention_mask=yes, token_type_ids=torch.tensor([[0, 0, 0, 1, 1]])).logits.shape
        torch.Size([1, 1])
        """
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        of_query = (attention_mask * (1 - token_type_ids)).to(states.dtype)
        of_passage = (attention_mask * token_type_ids).to(states.dtype)
        sums = torch.stack([of_query, of_passage], dim=1) @ states
        counts = torch.stack([of_query.sum(1), of_passage.sum(1)], dim=1)
        return SequenceClassifierOutput(logits=self.head(sums, counts, states[:, 0]))

    def head(self, sums: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        """Logits ``[n, 1]`` from what a sequence's states come to.

        Args:
            sums: ``[n, 2, hidden]``, of the query's states, [CLS] with them, and of the passage's.
            counts: ``[n, 2]``, of how many.
            first: ``[n, hidden]``, the states of [CLS]; a bi-encoder has one before the passage, too,
                so that it counts for both.
        """
        query = sums[:, 0] / counts[:, :1]
        passage = (sums[:, 1] + first) / (counts[:, 1:] + 1)
        similarity = self.config.similarity_scale * cosine_similarity(query, passage, dim=1)
        return similarity[:, None] + self.classifier(self.dropout(first))


def with_similarity(config: PreTrainedConfig) -> BertSimilarityConfig:
    """BERT's configuration as that of a similarity.

    Raises:
        ValueError: The configuration of another architecture.

    >>> with_similarity(BertConfig(num_labels=1)).model_type
    'bert-similarity'
    """
    if config.model_type != "bert":
        raise ValueError(
            f"head: expected an encoder of type bert for a similarity, got {config.model_type!r}: "
            "choose another encoder, or the head 'own'"
        )
    fields = config.to_diff_dict()
    return BertSimilarityConfig(**{name: x for name, x in fields.items() if name != "model_type"})


_MODEL = BertSimilarityForSequenceClassification
AutoConfig.register(BertSimilarityConfig.model_type, BertSimilarityConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BertSimilarityConfig, _MODEL, exist_ok=True)
# A copy of this file goes into every folder that is saved, for libraries that run code from there.
BertSimilarityConfig.register_for_auto_class()
_MODEL.register_for_auto_class("AutoModelForSequenceClassification")
