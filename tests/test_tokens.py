"""Tokens: ragged gathering, stores on disk, pairs packed as the tokenizer itself builds them.

MUTATIONS
"""

import json

import numpy as np
import pytest
import torch
from conftest import KINDS, WORDS, make_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from rdl_core.data import tokens
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.data.tokens import PairTemplate, TokenStore, pack, plan_batches

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
id_lists = st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=6), min_size=1, max_size=6)
TEXTS = [
    "What is the capital of Peru?", "", "lima", "Zürich's naïve Ωmega: x_1 -> [SEP] of two!",
    "a b c d e f g h i j k l m n o p", "the mean of the values  is nan\nwhere there are none",
]


# --- the store ----------------------------------------------------------------------------------


@few
@given(rows=id_lists, data=st.data(), max_tokens=st.integers(1, 7))
def test_gather_equals_slicing(rows, data, max_tokens):
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    ids, lengths = TokenStore.from_lists(rows).gather(torch.tensor(which, dtype=torch.int64), max_tokens)
    cut = [rows[i][:max_tokens] for i in which]
    assert ids.dtype == lengths.dtype == torch.int64
    assert (ids.tolist(), lengths.tolist()) == (sum(cut, []), [len(row) for row in cut])


@pytest.mark.parametrize(
    ("n_words", "stored"), [(40_000, torch.int16), (70_000, torch.int32)], ids=["uint16", "int32"]
)
def test_ids_of_large_vocabularies_survive_the_disk(tmp_path, n_words, stored):
    tokenizer = make_tokenizer("bert", words=[f"w{i}" for i in range(n_words)])
    texts = ["w0 w32763 w32764", f"w{n_words - 1}", "", "w39999 w1"]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert max(max(row, default=0) for row in expected) == n_words + 3
    store = TokenStore.build(texts, tokenizer, tmp_path, max_tokens=9, total=4)
    assert store.flat.dtype == stored
    for kept in (store, TokenStore.open(tmp_path)):
        assert kept.gather(torch.arange(4), 9)[0].tolist() == sum(expected, [])


def test_store_in_memory_holds_large_vocabularies_too():
    """XLM-RoBERTa has 250,002 words: ids above 65,535 once raised an OverflowError here."""
    tokenizer = make_tokenizer("bert", words=[f"w{i}" for i in range(70_000)])
    store = TokenStore.of_texts(["w69999 w1"], tokenizer)
    assert store.gather(torch.tensor([0]), 9)[0].tolist() == [70_003, 5]


@pytest.mark.parametrize("chunk", [1, 2, 4096])
def test_build_keeps_order_over_chunks_and_cuts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    texts = ["w1 w2 w3", "", "w4", "w5 w6 w7 w8", "w9"]
    store = TokenStore.build(iter(texts), make_tokenizer("bert"), tmp_path, max_tokens=3, total=5)
    ids, lengths = store.gather(torch.arange(5), 99)
    assert ids.tolist() == [4 + i for i in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert lengths.tolist() == [3, 0, 1, 3, 1]
    assert len(store) == 5


@pytest.mark.parametrize("texts", [[], ["", ""]], ids=["no texts", "empty texts"])
def test_store_without_a_token(tmp_path, texts):
    store = TokenStore.build(texts, make_tokenizer("bert"), tmp_path, max_tokens=3, total=len(texts))
    assert len(store) == len(texts)
    assert store.gather(torch.arange(len(texts)), 3)[0].tolist() == []


def _cut_file(name, n_bytes):
    def cut(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(n_bytes)

    return cut


def _recount(folder):
    meta = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(meta | {"rows": 7}))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "store.json").unlink(), id="unfinished"),
        pytest.param(_cut_file("tokens.bin", 4), id="tokens missing"),
        pytest.param(_cut_file("tokens.bin", 3), id="half a token"),
        pytest.param(_cut_file("tokens.bin", 0), id="no tokens"),
        pytest.param(lambda folder: (folder / "tokens.bin").unlink(), id="no tokens file"),
        pytest.param(_cut_file("offsets.npy", 140), id="offsets cut"),
        pytest.param(lambda folder: (folder / "offsets.npy").unlink(), id="no offsets"),
        pytest.param(_recount, id="other row count"),
        pytest.param(_cut_file("store.json", 5), id="store.json cut"),
    ],
)
def test_unfinished_or_damaged_store_is_refused(tmp_path, damage):
    TokenStore.build(["w1 w2", "w3"], make_tokenizer("bert"), tmp_path, max_tokens=9, total=2)
    damage(tmp_path)
    with pytest.raises(ValueError, match="build it again") as error:
        TokenStore.open(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_store_that_is_built_anew_is_unfinished_until_it_is_done(tmp_path, monkeypatch):
    """A rebuild, stopped half-way, once left new tokens under the old offsets: another text each."""
    monkeypatch.setattr(tokens, "_CHUNK", 1)
    tokenizer = make_tokenizer("bert")
    TokenStore.build(["w1 w2"], tokenizer, tmp_path, max_tokens=9, total=1)

    def stops():
        yield from ("w3", "w4")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        TokenStore.build(stops(), tokenizer, tmp_path, max_tokens=9, total=2)
    with pytest.raises(ValueError, match="build it again"):
        TokenStore.open(tmp_path)


# --- pairs --------------------------------------------------------------------------------------


def _word_pieces():
    letters = sorted(set("".join(TEXTS).lower()) - set(" \n"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "me", "##an", "of", *letters]
    return BertTokenizer(
        vocab={piece: i for i, piece in enumerate([*pieces, *(f"##{x}" for x in letters)])}
    )


def _byte_pairs():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])


TOKENIZERS = {
    **{f"words, {kind}": lambda kind=kind: make_tokenizer(kind) for kind in KINDS},
    "word pieces, BERT": _word_pieces,
    "byte pairs, RoBERTa": _byte_pairs,
    "embedded MiniLM": lambda: AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER)),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def _pack(queries, passages, tokenizer, *, query_tokens=999, passage_tokens=999):
    rows = [(q, p) for q in range(len(queries)) for p in range(len(passages))]
    query_rows, passage_rows = torch.tensor(rows).T
    return pack(
        TokenStore.of_texts(queries, tokenizer), TokenStore.of_texts(passages, tokenizer),
        query_rows, passage_rows, template=PairTemplate.of(tokenizer),
        query_tokens=query_tokens, passage_tokens=passage_tokens,
    )


def _cuts(packed, part):
    bounds = packed.cu_seqlens.tolist()
    return [part[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def test_pairs_are_packed_as_the_tokenizer_builds_them(tokenizer):
    packed = _pack(TEXTS, [*TEXTS, " ".join(WORDS)], tokenizer)
    pairs = [(q, p) for q in TEXTS for p in [*TEXTS, " ".join(WORDS)]]
    theirs = tokenizer(*map(list, zip(*pairs, strict=True)))
    zeros = [[0] * len(ids) for ids in theirs["input_ids"]]
    assert _cuts(packed, packed.input_ids) == theirs["input_ids"]
    assert _cuts(packed, packed.segment_ids) == theirs.get("token_type_ids", zeros)
    assert _cuts(packed, packed.position_ids) == [list(range(len(i))) for i in zeros]
    assert packed.max_length == max(map(len, zeros))
    assert packed.cu_seqlens.dtype == torch.int32


def test_segments_are_those_that_the_tokenizer_gives_when_not_asked_for_more():
    """A model that never sees segment ids elsewhere must not see them here either.

    A tokenizer whose inputs leave ``token_type_ids`` out gave other scores here than the saved
    folder gave in transformers and sentence-transformers, which do not ask for them.
    """
    silent = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer("bert").backend_tokenizer,
        model_input_names=["input_ids", "attention_mask"], cls_token="[CLS]", sep_token="[SEP]",
    )
    assert "token_type_ids" not in silent("w1", "w2")
    assert PairTemplate.of(silent).segments == (0, 0)


@pytest.mark.parametrize(("query_tokens", "passage_tokens"), [(1, 1), (2, 5), (40, 3)])
def test_query_and_passage_are_cut_each_to_its_own_length(tokenizer, query_tokens, passage_tokens):
    packed = _pack(
        TEXTS, TEXTS, tokenizer, query_tokens=query_tokens, passage_tokens=passage_tokens
    )
    template = PairTemplate.of(tokenizer)
    rows = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    expected = [
        [
            *template.before, *q[:query_tokens], *template.between, *p[:passage_tokens],
            *template.after,
        ]
        for q in rows
        for p in rows
    ]
    assert _cuts(packed, packed.input_ids) == expected
    assert template.n_tokens == tokenizer.num_special_tokens_to_add(pair=True)


def test_template_survives_letters_of_several_tokens():
    """A tokenizer may cut even "a" in two; what it is cut into is no special token."""
    vocabulary = {"[UNK]": 0, "_": 1, "##a": 2, "##b": 3}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = normalizers.Prepend("_")
    pieces.post_processor = make_tokenizer("bert").backend_tokenizer.post_processor
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert len(tokenizer("a", add_special_tokens=False)["input_ids"]) == 2
    assert PairTemplate.of(tokenizer).n_tokens == 3


# --- batches ------------------------------------------------------------------------------------


@few
@given(lengths=st.lists(st.integers(0, 50), max_size=40), budget=st.integers(1, 200))
def test_batches_are_a_partition_within_the_budget(lengths, budget):
    batches = plan_batches(torch.tensor(lengths, dtype=torch.int64), budget)
    sizes = [[lengths[i] for i in batch.tolist()] for batch in batches]
    assert sorted(torch.cat(batches).tolist() if batches else []) == list(range(len(lengths)))
    assert all(len(size) == 1 or max(size) * len(size) <= budget for size in sizes)
    assert sum(sizes, []) == sorted(lengths, reverse=True)


@few
@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=40), budget=st.integers(1, 200))
def test_no_batch_could_take_the_next_pair(lengths, budget):
    batches = plan_batches(torch.tensor(lengths), budget)
    assume(len(batches) > 1)
    for batch in batches[:-1]:
        assert max(lengths[i] for i in batch.tolist()) * (len(batch) + 1) > budget


def test_shared_memory_maps_are_not_written_through(tmp_path):
    """The map is private: what training does to a tensor never reaches the store's file."""
    store = TokenStore.build(["w1 w2"], make_tokenizer("bert"), tmp_path, max_tokens=9, total=1)
    store.flat[0] = 9
    assert np.fromfile(tmp_path / "tokens.bin", np.uint16).tolist() == [5, 6]
