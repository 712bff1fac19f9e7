"""Tiny encoders and token stores, made from configurations: no test needs a network."""

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rdl_core.conftest import _logging_as_before  # noqa: F401 - for all tests here, too
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import TokenStore
from rdl_core.similarity import BertSimilarityConfig, BertSimilarityForSequenceClassification

torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(40)]
KINDS = ("bert", "electra", "roberta", "modernbert", "bert-similarity")
_ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 66}
_MODELS = {
    "bert": (BertConfig, BertForSequenceClassification, {}),
    "bert-similarity": (
        BertSimilarityConfig, BertSimilarityForSequenceClassification, {"similarity_scale": 2.0}
    ),
    "electra": (ElectraConfig, ElectraForSequenceClassification, {"embedding_size": 12}),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, _ROBERTA),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification, _ROBERTA),
    "modernbert": (
        ModernBertConfig,
        ModernBertForSequenceClassification,
        # Layers are global, local, global, ...; a local one sees three places to either side.
        {
            "global_attn_every_n_layers": 2, "local_attention": 6, "bos_token_id": 0,
            "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2,
        },
    ),
}


def make_tokenizer(kind, words=WORDS):
    """A fast tokenizer of whole words: ``[CLS] a [SEP] b [SEP]``, or ``<s> a </s></s> b </s>``.

    Only those of BERT and ELECTRA give segment ids.
    """
    of_roberta = "roberta" in kind
    special = ["<s>", "<pad>", "</s>", "<unk>"] if of_roberta else [
        "[CLS]", "[PAD]", "[SEP]", "[UNK]"
    ]
    cls, pad, sep, unknown = special
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = ((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    if of_roberta:
        tokenizer.post_processor = processors.RobertaProcessing(*ends)
    else:
        tokenizer.post_processor = processors.BertProcessing(*ends)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    segments = kind in ("bert", "electra", "bert-similarity")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token=pad, unk_token=unknown,
        cls_token=cls, sep_token=sep, model_input_names=inputs[:: 1 if segments else 2],
    )


def make_model(kind, *, layers=2, seed=0, dropout=0.0, **own):
    """Random weights, some ten times larger than usual, so that scores differ."""
    config, model, settings = _MODELS[kind]
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(WORDS) + 4, "hidden_size": 24, "num_hidden_layers": layers,
        "num_attention_heads": 3, "intermediate_size": 32, "max_position_embeddings": 64,
        "pad_token_id": 1,
    }
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    if kind == "modernbert":
        dropouts = {f"{part}_dropout": dropout for part in ("embedding", "mlp", "classifier")}
    settings = sizes | settings | dropouts | {"num_labels": 1, "initializer_range": 0.2} | own
    return model(config(**settings))


def make_student(kind="bert", *, query_tokens=5, passage_tokens=20, **own):
    """A cross-encoder of two layers in evaluation mode."""
    student = CrossEncoder(
        make_model(kind, **own), make_tokenizer(kind), query_tokens=query_tokens,
        passage_tokens=passage_tokens,
    )
    return student.eval()


def make_texts(n, *, seed, longest):
    """`n` texts of 1 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(n)]


def small_stage(stage, *, steps, lists=(), **training):
    """A stage of the study that draws three passages of each of six queries."""
    few = {"steps": steps, "queries_per_step": 2, "list_size": 3, **training}
    own = replace(stage.lists, n_queries=6, **dict(lists))
    return replace(stage, lists=own, training=replace(stage.training, **few))


@pytest.fixture(params=KINDS)
def kind(request):
    """Each architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def texts():
    """Seven queries and thirteen passages, some of them longer than a student reads."""
    return make_texts(7, seed=1, longest=8), make_texts(13, seed=2, longest=30)


@pytest.fixture(scope="session")
def stores(texts):
    """Token stores of the texts; the tokenizers of all kinds give the same ids."""
    return tuple(TokenStore.of_texts(part, make_tokenizer("bert")) for part in texts)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A folder with a tiny encoder that reads what the embedded one reads."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("encoder")
    CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=8).save_pretrained(folder)
    return str(folder)
