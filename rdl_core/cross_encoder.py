"""The student: a cross-encoder over packed sequences.

Weights and layers are those of transformers' ``AutoModelForSequenceClassification`` with one output,
so that a saved folder loads anywhere. Sequences come packed, end to end, so that no linear layer
computes padding; attention stays within each (`rdl_core.attention`), without dropout; the last layer of
encoders like BERT computes first positions alone. In shapes, `n` is the number of sequences and `t`
that of all their tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import cached_file

from rdl_core.attention import ATTENTION, Layout, attend_first, attend_first_to_states, has_varlen
from rdl_core.data.downloads import embedded_path
from rdl_core.devices import PRECISIONS
from rdl_core.files import content_hash, read_json
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches

__all__ = ["ARCHITECTURES", "CrossEncoder", "LIMITS", "best_of", "model_path", "training_record"]

LIMITS = {"query_tokens": 32, "passage_tokens": 256, "chunks": 1}  #: Rank-DistiLLM's (ECIR 2025).
_KEY = "rdl_core"  # of the limits, in config.json
_WEIGHTS = "model.safetensors"
_OF_ENCODER = re.compile(r"(^|\.)(embeddings|layers?\.\d+)\.(?!position_ids)")  # not of another head
_HEADS = {  # by model type: names of the head's two layers, and what may be computed between these
    "bert": ("bert.pooler.dense", "classifier", ["tanh"]),
    "electra": ("classifier.dense", "classifier.out_proj", ["gelu"]),
    **dict.fromkeys(("roberta", "xlm-roberta"), ("classifier.dense", "classifier.out_proj", ["tanh"])),
    "modernbert": ("head.dense", "classifier", ["gelu", "relu", "silu", "tanh"]),
}
_log = logging.getLogger(__name__)


class CrossEncoder(nn.Module):
    """Scores of (query, passage) pairs, cut to so many tokens, from one transformer encoder.

    Of a longer passage, up to `chunks` pieces are read; the best score counts (MaxP; Dai and Callan,
    SIGIR 2019). ValueError for an architecture not in `ARCHITECTURES`, a tokenizer that does not fit,
    or limits below 1 or past the encoder's.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, query_tokens: int,
        passage_tokens: int, chunks: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        kind, vocabulary = model.config.model_type, tokenizer.get_vocab()
        if kind not in ARCHITECTURES:
            kinds = ", ".join(ARCHITECTURES)
            raise ValueError(f"expected an encoder of type {kinds}, got {kind!r}: choose another")
        if vocabulary.keys() <= set(tokenizer.all_special_tokens):
            told = f"the tokenizer knows no word, only {', '.join(vocabulary)}: is its file missing?"
            raise ValueError(f"{told} Copy tokenizer.json and tokenizer_config.json of the encoder")
        model.set_attn_implementation(ATTENTION)
        self.model, self.tokenizer = model, tokenizer
        self.query_tokens, self.passage_tokens, self.chunks = query_tokens, passage_tokens, chunks
        if wrong := {name: x for name in LIMITS if (x := getattr(self, name)) < 1}:
            raise ValueError(f"expected limits of at least 1, got {wrong}: raise it, or leave it out")
        self.template = PairTemplate.of(tokenizer)
        n_words = model.get_input_embeddings().num_embeddings
        n_segments = getattr(model.config, "type_vocab_size", 0) or 2  # ModernBERT embeds none
        ids, segments = vocabulary.values(), self.template.segments
        for what, last, n in (
            ("ids up to", max(ids), n_words), ("passages segment", max(segments), n_segments)
        ):  # fmt: skip
            if last >= n:
                told = f"the tokenizer gives {what} {last}, the model has {n}, from 0"
                raise ValueError(f"{told}: use the one that the model was trained with")
        # Many tokenizers name no limit, and some a larger one than the encoder's.
        table = model.config.max_position_embeddings - _first_position(model)
        longest, special = min(tokenizer.model_max_length, table), self.template.n_tokens
        if (needed := query_tokens + passage_tokens + special) > longest:
            told = f"query_tokens + passage_tokens + {special} special ones are {needed}"
            raise ValueError(f"expected at most {longest} tokens a pair, but {told}: lower one of them")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, query_tokens: int | None = None, passage_tokens: int | None = None,
        chunks: int | None = None, trained: bool = False,
    ) -> CrossEncoder:  # fmt: skip
        """Load a student, or, unless it must be `trained`, an encoder whose head is drawn at random.

        `name` is a folder, that of a training, a hub id, or the embedded encoder's name; what it names
        may be a modular cross-encoder of sentence-transformers. Limits of None are the recorded ones,
        or else `LIMITS`. Only safetensors are read, or bare tensors of a module, and no code of a model
        is run. ValueError for no such model, several outputs, no head, or weights that changed.
        """
        config = _load(AutoConfig, name)
        kinds = config.architectures or ["no architecture"]
        scores = any(kind.endswith("ForSequenceClassification") for kind in kinds)
        head = {} if scores else _head_of_modules(name, config)
        if trained and not (scores or head):
            expected = "expected a trained cross-encoder (...ForSequenceClassification), got"
            told = f"{', '.join(kinds)}, whose scores would be random: distil a student from it first"
            raise ValueError(f"{name}: {expected} {told}")
        if scores and config.num_labels != 1:
            told = f"expected a model with one output, the score, got {config.num_labels} outputs"
            raise ValueError(f"{name}: {told}: choose another")
        weights = Path(model_path(name), _WEIGHTS)
        recorded_hash = training_record(name).get("files", {}).get(f"model/{_WEIGHTS}")
        if recorded_hash and weights.is_file() and content_hash(weights) != recorded_hash:
            told = f"{weights} is damaged: its SHA-256 is not that of the trained weights"
            raise ValueError(f"{told}: restore the file, or train again in another folder")
        given = {"query_tokens": query_tokens, "passage_tokens": passage_tokens, "chunks": chunks}
        limits = LIMITS | getattr(config, _KEY, {}) | {k: x for k, x in given.items() if x is not None}
        config.num_labels = 1
        own = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, loaded = _load(AutoModelForSequenceClassification, name, config=config, **own)
        student = cls(model, _load(AutoTokenizer, name), **limits)
        fresh = set() if scores else student.head_names()
        missing = sorted(set(loaded["missing_keys"]) - fresh)
        missing += sorted(x for x in loaded["unexpected_keys"] if scores or _OF_ENCODER.search(x))
        if missing:
            told = f"{len(missing)} are missing or left over, such as {', '.join(missing[:3])}"
            told = f"{name}: expected the weights of its config.json, but {told}"
            raise ValueError(f"{told}: its scores would be random; save it again, or use another")
        model.load_state_dict(head, strict=False)
        _log.info("%s: queries cut to %d tokens, passages to %d, pieces: %d", name, *limits.values())
        return student

    @property
    def limits(self) -> dict[str, int]:
        """`LIMITS` of this student; ``chunks`` only if not 1, which earlier records do not have."""
        return {x: getattr(self, x) for x in LIMITS if x != "chunks" or self.chunks != 1}

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
        token_budget: int, precision: str = "float32", fill: int = 1, workers: int = 1,
        run: Callable = map,
    ) -> Tensor:  # fmt: skip
        """Score pairs of rows, int64 ``[n]``, of stores on this model's device; float32 ``[n]``.

        Differentiable. A batch has at most `token_budget` tokens, padded to a multiple of `fill`; `run`
        maps over batches planned for so many `workers`. `precision` is a key of `PRECISIONS`.
        """
        n_pairs, size = len(query_rows), self.passage_tokens
        passages, passage_rows, pair_of = passages.pieces(passage_rows, size, self.chunks)
        query_rows = query_rows[pair_of]
        lengths = self.pair_lengths(queries, passages, query_rows, passage_rows).cpu()
        batches = [x.to(self.device) for x in plan_batches(lengths, token_budget, workers=workers)]
        score = partial(self.score_batch, queries, passages, precision=precision, fill=fill)
        rows = [query_rows[x] for x in batches], [passage_rows[x] for x in batches]
        return best_of(torch.cat(list(run(score, *rows))), pair_of[torch.cat(batches)], n_pairs)

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
        setattr(self.model.config, _KEY, self.limits)
        logits = {"activation_fn": "torch.nn.modules.linear.Identity"}  # no sigmoid there either
        self.model.config.sentence_transformers = logits
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.safetensors"):  # which are written for their owner alone
            file.chmod(Path(folder, "config.json").stat().st_mode)


def best_of(scores: Tensor, source: Tensor, n: int) -> Tensor:
    """Best of the scores ``[m]`` of pieces of each `source`, int64 ``[m]``; ``[n]``, -inf for none."""
    return scores.new_full((n,), -torch.inf).scatter_reduce(0, source, scores, "amax")


def model_path(name: str | Path) -> str:
    """Where transformers finds a model: ``model/`` in the folder of a training, else the name."""
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else embedded_path(str(name))


def training_record(name: str | Path) -> dict:
    """The manifest of the training that made a student; empty where there is none."""
    manifests = [folder / "manifest.json" for folder in (Path(name), Path(name).parent)]
    return next((read_json(path) for path in manifests if path.is_file()), {})


def _load(kind: Any, name: str | Path, **own: Any) -> Any:
    """A configuration, model or tokenizer by one of transformers' Auto classes."""
    try:
        return kind.from_pretrained(model_path(name), trust_remote_code=False, **own)
    except Exception as error:  # safetensors and tokenizers have errors of their own
        reason = str(error).partition("\n")[0]  # of several lines
        told = f"{name} is no folder or hub id of a model that transformers loads ({reason})"
        raise ValueError(told) from None


def _head_of_modules(name: str | Path, config: Any) -> dict[str, Tensor]:
    """Weights of the head of a modular cross-encoder, as Ettin's are, and its settings into `config`.

    None of other models; ValueError for modules that are no head of transformers'.
    """
    quiet = {f"_raise_exceptions_for_{x}": False for x in ("missing_entries", "connection_errors")}
    settings = cached_file(model_path(name), "config_sentence_transformers.json", **quiet)
    if not settings or read_json(Path(settings)).get("model_type") != "CrossEncoder":
        return {}
    from sentence_transformers import CrossEncoder as Modules  # takes seconds

    safely = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    _, *modules = Modules(model_path(name), device="cpu", **safely)
    modern = config.model_type == "modernbert"
    first, last, activations = _HEADS.get(config.model_type, ("", "", ()))
    expected = ["Pooling", "Dense", *["LayerNorm"] * modern, "Dense"]
    if fits := [type(x).__name__ for x in modules] == expected:
        pooling, dense, out = modules[0], modules[1], modules[-1]
        activation = type(dense.activation_function).__name__.lower()
        fits = pooling.pooling_mode in ("cls", "mean")[: 1 + modern] and activation in activations
        fits &= isinstance(out.activation_function, nn.Identity) and out.out_features == 1
        fits &= not (dense.use_residual or out.use_residual)
        fits &= not modern or modules[2].norm.eps == config.norm_eps
    if not fits:
        told = f"expected {', '.join(expected)}, as transformers' head of {config.model_type} has them"
        raise ValueError(f"{name}: {told}, got {modules}: choose another model")
    head, shift = {}, 0.0
    if modern:  # whose own norm adds nothing: what this one adds goes into the last bias
        config.classifier_pooling, config.classifier_activation = pooling.pooling_mode, activation
        config.classifier_bias, norm = dense.linear.bias is not None, modules[2].norm
        head["head.norm.weight"], shift = norm.weight, out.linear.weight @ norm.bias
    for place, linear, more in ((first, dense.linear, 0.0), (last, out.linear, shift)):
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        head |= {f"{place}.weight": linear.weight, f"{place}.bias": bias + more}
    return head


def _first_position(model: PreTrainedModel) -> int:
    """First used row of the position table: RoBERTa's comes after its padding id."""
    return model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0


def _to_autocast_dtype(hidden: Tensor) -> Tensor:
    """States in autocast's precision, which layers keep, so that a CPU does not cast them in each layer.

    In bfloat16 a MiniLM's training step is 1.08 times as fast with it (a Xeon with AMX); gradients are
    2.3 % from float32's instead of 1.8 %.
    """
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def bert_states(model: PreTrainedModel, layout: Layout, layers: Iterable[nn.Module]) -> Tensor:
    """States ``[t, hidden]`` behind some layers of an encoder like BERT."""
    base, packed = model.base_model, layout.packed
    hidden = base.embeddings(
        input_ids=packed.input_ids[None], token_type_ids=packed.segment_ids[None],
        position_ids=packed.position_ids[None] + _first_position(model),
    )  # fmt: skip
    if hasattr(base, "embeddings_project"):  # ELECTRA's small models
        hidden = base.embeddings_project(hidden)
    hidden = _to_autocast_dtype(hidden)
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
    if has_varlen(query):
        key, value = (x(hidden).unflatten(-1, heads) for x in (attention.key, attention.value))
        attended = attend_first(query, key, value, layout)
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
    hidden = _to_autocast_dtype(base.embeddings(input_ids=packed.input_ids[None]))
    kinds, places = set(model.config.layer_types), packed.position_ids[None]
    rotations = {kind: base.rotary_emb(hidden, places, kind) for kind in kinds}
    for layer in base.layers:
        hidden = layer(hidden, layout=layout, position_embeddings=rotations[layer.attention_type])
    hidden = base.final_norm(hidden)
    if model.config.classifier_pooling == "cls":
        return hidden[0].index_select(0, packed.cu_seqlens[:-1])
    padded = layout.unpack(hidden.transpose(0, 1)) * layout.mask(None).mT
    return padded.sum(2).squeeze(1) / layout.lengths[:, None]


#: By model type: ``encode(model, layout)`` gives one state per sequence, ``head(model, pooled)`` its
#: logit ``[n, 1]``. Others can be registered here.
ARCHITECTURES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), (_encode_bert, _head_bert)),
    "modernbert": (_encode_modernbert, lambda model, x: model.classifier(model.drop(model.head(x)))),
}
