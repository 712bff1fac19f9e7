"""The student: a cross-encoder over packed sequences.

Weights and layers are those of transformers' ``AutoModelForSequenceClassification`` with one output,
so that a saved folder loads anywhere. Sequences come packed, end to end, so that no linear layer
computes padding; attention stays within each (`rdl_core.attention`), without dropout; the last layer
computes first positions alone, or all where the head takes their mean. In shapes, `n` is the number of
sequences and `t` that of all their tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rdl_core.attention import ATTENTION, Layout, attend_first, attend_first_to_states, has_varlen
from rdl_core.data.downloads import embedded_path
from rdl_core.devices import PRECISIONS
from rdl_core.files import content_hash, read_json
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches

__all__ = ["ARCHITECTURES", "CrossEncoder", "model_path", "training_record"]

_LIMITS = {"query_tokens": 32, "passage_tokens": 256}  # Rank-DistiLLM's (Schlatt et al., ECIR 2025)
_KEY = "rdl_core"  # of the limits, in config.json
_WEIGHTS = "model.safetensors"
_OF_ENCODER = re.compile(r"(^|\.)(embeddings|layers?\.\d+)\.(?!position_ids)")  # not of another head
_log = logging.getLogger(__name__)


class CrossEncoder(nn.Module):
    """Scores of (query, passage) pairs, cut to so many tokens, from one transformer encoder.

    ValueError for an architecture not in `ARCHITECTURES`, several outputs, or lengths past the limit.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, query_tokens: int,
        passage_tokens: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if model.config.model_type not in ARCHITECTURES:
            kinds, kind = ", ".join(ARCHITECTURES), model.config.model_type
            raise ValueError(f"expected an encoder of type {kinds}, got {kind!r}: choose another")
        _check_outputs(model.config)
        _check_tokenizer(tokenizer, model)
        model.set_attn_implementation(ATTENTION)
        self.model, self.tokenizer = model, tokenizer
        self.query_tokens, self.passage_tokens = query_tokens, passage_tokens
        self.template = PairTemplate.of(tokenizer)
        n_segments = getattr(model.config, "type_vocab_size", 0)
        if n_segments and (last := max(self.template.segments)) >= n_segments:
            told = f"gives passages segment {last}, the model has {n_segments}, from 0"
            raise ValueError(f"the tokenizer {told}: use the one that the model was trained with")
        # Many tokenizers name no limit, and some a larger one than the encoder's.
        table = model.config.max_position_embeddings - _first_position(model)
        longest, special = min(tokenizer.model_max_length, table), self.template.n_tokens
        if (needed := query_tokens + passage_tokens + special) > longest:
            told = f"query_tokens + passage_tokens + {special} special ones are {needed}"
            raise ValueError(f"expected at most {longest} tokens a pair, but {told}: lower one of them")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, query_tokens: int | None = None, passage_tokens: int | None = None,
        trained: bool = False,
    ) -> CrossEncoder:  # fmt: skip
        """Load a student, or, unless it must be `trained`, an encoder whose head is drawn at random.

        `name` is a folder, that of a training, a hub id, or the embedded encoder's name. Limits of None
        are the recorded ones, or else 32 and 256. Only safetensors are read, and no code of a model is
        run. ValueError for no such model, several outputs, no head, or weights that changed.
        """
        with _loading(name) as path:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        manifest = training_record(name)
        kinds = config.architectures or ["no architecture"]
        scores = any(kind.endswith("ForSequenceClassification") for kind in kinds)
        if scores:
            _check_outputs(config, f"{name}: ")
        elif trained:
            expected = "expected a trained cross-encoder (...ForSequenceClassification), got"
            told = f"{', '.join(kinds)}, whose scores would be random: distil a student from it first"
            raise ValueError(f"{name}: {expected} {told}")
        weights = Path(model_path(name), _WEIGHTS)
        recorded_hash = manifest.get("files", {}).get(f"model/{_WEIGHTS}")
        if recorded_hash and weights.is_file() and content_hash(weights) != recorded_hash:
            told = f"{weights} is damaged: its SHA-256 is not that of the trained weights"
            raise ValueError(f"{told}: restore the file, or train again in another folder")
        recorded = getattr(config, _KEY, None) or manifest.get("config", {})
        given = {"query_tokens": query_tokens, "passage_tokens": passage_tokens}
        limits = {key: given[key] or recorded.get(key, _LIMITS[key]) for key in _LIMITS}
        config.num_labels = 1
        with _loading(name) as path:
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        student = cls(model, tokenizer, **limits)
        fresh = set() if scores else student.head_names()
        missing = sorted(set(loaded["missing_keys"]) - fresh)
        missing += sorted(x for x in loaded["unexpected_keys"] if scores or _OF_ENCODER.search(x))
        missing += sorted(str(x) for x in loaded["mismatched_keys"])
        if missing:
            raise ValueError(
                f"{name}: expected the weights of its config.json, but {len(missing)} are missing, of "
                f"another shape or left over, such as {', '.join(missing[:3])}: its scores would be "
                "random; save the model again, or use another"
            )
        _log.info("%s: queries are cut to %d tokens, passages to %d", name, *limits.values())
        return student

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def forward(self, packed: Packed) -> Tensor:
        """Logits of packed sequences on this model's device; float32 ``[n]``, higher is better."""
        encode, head = ARCHITECTURES[self.model.config.model_type]
        pooled = encode(self.model, Layout(packed))
        # In bfloat16, scores of a list of 100 tie by the handful, and ties are settled elsewhere.
        with torch.autocast(self.device.type, enabled=False):
            return head(self.model, pooled.float()).squeeze(-1)

    def score(
        self, queries: TokenStore, passages: TokenStore, query_rows: Tensor, passage_rows: Tensor, *,
        token_budget: int, precision: str = "float32",
    ) -> Tensor:  # fmt: skip
        """Score pairs of rows, int64 ``[n]``, of stores on this model's device; float32 ``[n]``.

        Differentiable. A batch has at most `token_budget` tokens; `precision` is a key of `PRECISIONS`.
        """
        lengths = self.pair_lengths(queries, passages, query_rows, passage_rows)
        batches = [x.to(self.device) for x in plan_batches(lengths.cpu(), token_budget)]
        pairs = ((query_rows[x], passage_rows[x]) for x in batches)
        scores = [self.score_batch(queries, passages, *rows, precision=precision) for rows in pairs]
        return in_order(scores, batches)

    def score_batch(
        self, queries: TokenStore, passages: TokenStore, query_rows: Tensor, passage_rows: Tensor, *,
        precision: str, fill: int = 1, lengths: int = 1,
    ) -> Tensor:
        """`score` for pairs that go through the encoder together, padded as `Packed.filled` says."""
        packed = pack(
            queries, passages, query_rows, passage_rows, template=self.template,
            query_tokens=self.query_tokens, passage_tokens=self.passage_tokens,
        )  # fmt: skip
        dtype = PRECISIONS[precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self(packed.filled(fill, lengths))[: len(query_rows)]

    def pair_lengths(
        self, queries: TokenStore, passages: TokenStore, query_rows: Tensor, passage_rows: Tensor
    ) -> Tensor:
        """Tokens in the sequence of each pair, special ones included; int64 ``[n]``."""
        of_queries = queries.lengths(query_rows, self.query_tokens)
        return of_queries + passages.lengths(passage_rows, self.passage_tokens) + self.template.n_tokens

    def head_names(self) -> set[str]:
        """Names, in the wrapped model, of the weights after the encoder; BERT's pooler included."""
        encoder = f"{self.model.base_model_prefix}."
        names = dict(self.model.named_parameters())
        return {x for x in names if not x.startswith(encoder) or x.startswith(f"{encoder}pooler.")}

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that transformers and sentence-transformers load unaided, limits included."""
        setattr(self.model.config, _KEY, {key: getattr(self, key) for key in _LIMITS})
        logits = {"activation_fn": "torch.nn.modules.linear.Identity"}  # no sigmoid there either
        self.model.config.sentence_transformers = logits
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.safetensors"):  # which are written for their owner alone
            file.chmod(Path(folder, "config.json").stat().st_mode)


def in_order(scores: list[Tensor], batches: list[Tensor]) -> Tensor:
    """Scores ``[size]`` of batches in the order of their pairs, whose places are in `batches`."""
    flat = torch.cat(scores)
    return torch.empty_like(flat).index_copy(0, torch.cat(batches), flat)


def model_path(name: str | Path) -> str:
    """Where transformers finds a model: ``model/`` in the folder of a training, else the name."""
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else embedded_path(str(name))


def training_record(name: str | Path) -> dict:
    """The manifest of the training that made a student; empty where there is none."""
    for folder in (Path(name), Path(name).parent):
        if (manifest := folder / "manifest.json").is_file():
            return read_json(manifest)
    return {}


@contextmanager
def _loading(name: str | Path) -> Iterator[str]:
    try:
        yield model_path(name)
    except Exception as error:  # safetensors and tokenizers have errors of their own
        reason = str(error).partition("\n")[0]  # of several lines
        told = f"{name} is no folder or hub id of a model that transformers loads ({reason})"
        raise ValueError(told) from None


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    vocabulary, n_rows = tokenizer.get_vocab(), model.get_input_embeddings().num_embeddings
    if vocabulary.keys() <= set(tokenizer.all_special_tokens):
        told = f"the tokenizer knows no word, only {', '.join(vocabulary)}: is its file missing?"
        raise ValueError(f"{told} Copy tokenizer.json and tokenizer_config.json of the encoder")
    if (last := max(vocabulary.values())) >= n_rows:
        told = f"gives ids up to {last}, the model has {n_rows} word embeddings, from 0"
        raise ValueError(f"the tokenizer {told}: use the model's own, or resize its embeddings")


def _check_outputs(config: PreTrainedConfig, where: str = "") -> None:
    if config.num_labels != 1:
        told = f"expected a model with one output, the score, got {config.num_labels} outputs"
        raise ValueError(f"{where}{told}: choose another, or load it with num_labels=1")


def _first_position(model: PreTrainedModel) -> int:
    """First used row of the position table: RoBERTa's comes after its padding id."""
    return model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0


def bert_states(model: PreTrainedModel, layout: Layout, layers: Iterable[nn.Module]) -> Tensor:
    """States ``[t, hidden]`` behind some layers of an encoder like BERT."""
    base, packed = model.base_model, layout.packed
    hidden = base.embeddings(
        input_ids=packed.input_ids[None], token_type_ids=packed.segment_ids[None],
        position_ids=packed.position_ids[None] + _first_position(model),
    )  # fmt: skip
    if hasattr(base, "embeddings_project"):  # ELECTRA's small models
        hidden = base.embeddings_project(hidden)
    for layer in layers:
        hidden = layer(hidden, layout=layout)
    return hidden[0]


def _encode_bert(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Last hidden state of the first positions, ``[n, 1, hidden]``."""
    *layers, last = model.base_model.encoder.layer
    hidden = bert_states(model, layout, layers)
    attention, heads = last.attention.self, (-1, last.attention.self.attention_head_size)
    first = hidden.index_select(0, layout.packed.cu_seqlens[:-1])
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


def _encode_modernbert(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Normalised last hidden state, pooled as the configuration says: ``[n, hidden]``."""
    base, packed = model.base_model, layout.packed
    hidden = base.embeddings(input_ids=packed.input_ids[None])
    kinds, places = set(model.config.layer_types), packed.position_ids[None]
    rotations = {kind: base.rotary_emb(hidden, places, kind) for kind in kinds}
    *layers, last = base.layers
    for layer in layers:
        hidden = layer(hidden, layout=layout, position_embeddings=rotations[layer.attention_type])
    turn = rotations[last.attention_type]
    if model.config.classifier_pooling != "cls":
        hidden = base.final_norm(last(hidden, layout=layout, position_embeddings=turn))
        padded = layout.unpack(hidden.transpose(0, 1)) * layout.mask(None).mT
        return padded.sum(2).squeeze(1) / layout.lengths[:, None]
    # Of the last layer, only the first position of each sequence is computed.
    hidden, attention, starts = hidden[0], last.attn, packed.cu_seqlens[:-1]
    projected = attention.Wqkv(last.attn_norm(hidden)).unflatten(-1, (3, -1, attention.head_dim))
    query, key, value = projected.unbind(1)
    query, key = apply_rotary_pos_emb(query, key, *(x[0] for x in turn))
    attended = attend_first(attention, query.index_select(0, starts), key, value, layout)
    first = hidden.index_select(0, starts) + attention.out_drop(attention.Wo(attended))
    return base.final_norm(first + last.mlp(last.mlp_norm(first)))


def _head_modernbert(model: PreTrainedModel, pooled: Tensor) -> Tensor:
    return model.classifier(model.drop(model.head(pooled)))


#: By model type: ``encode(model, layout)`` gives one state per sequence, ``head(model, pooled)`` its
#: logit ``[n, 1]``. Others can be registered here.
ARCHITECTURES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), (_encode_bert, _head_bert)),
    "modernbert": (_encode_modernbert, _head_modernbert),
}
