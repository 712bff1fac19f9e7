"""Tokens: ragged gathering, stores on disk, pairs packed as the tokenizer itself builds them.

Mutations seen to fail, one at a time. In memory: ids always of 16 bits, or not masked; none of no
texts. On disk: 16 bits up to 2**17 words; ``store.json`` kept during a rebuild, its damage not told
apart; sizes or the last offset not checked; offsets read at opening, or kept while building; ids
mapped for writing; the last chunk lost; chunks of unbounded length; texts not cut; padding, cutting
or splitting of special tokens left as the tokenizer had them, or changed in it; offsets begun at 0
in each chunk; nan let through; the warning of one core gone. Resuming: never; with other settings;
whatever the sizes of the files; files not cut back; done texts not read past; their hash not
compared, or without lengths; the tokenizer not hashed; the record before the data.
Pairs: segment ids asked for, not checked, or changed one token late; one letter as the only probe,
or taken for one token; a second read from the device; special tokens sent to it; repeats without
their total; the longest of no sequences. Batches: a budget that counts the shortest pair, or is
not lowered for many.
Filler: in one sequence, however long; without positions of its own; its end a token early; none.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from conftest import KINDS, WORDS, make_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from rdl_core.data import tokens
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches

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
    which_rows = torch.tensor(which, dtype=torch.int64)
    ids, lengths = TokenStore.from_lists(rows).gather(which_rows, max_tokens)
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
    total = len(texts)
    store = TokenStore.build(texts, make_tokenizer("bert"), tmp_path, max_tokens=3, total=total)
    assert len(store) == len(texts)
    assert store.gather(torch.arange(len(texts)), 3)[0].tolist() == []


def _cut_file(name, n_bytes):
    def cut(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(n_bytes)

    return cut


def _other_last_offset(folder):
    offsets = np.fromfile(folder / "offsets.bin", np.int64)
    offsets[-1] += 1
    offsets.tofile(folder / "offsets.bin")


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
        pytest.param(_cut_file("offsets.bin", 20), id="offsets cut"),
        pytest.param(lambda folder: (folder / "offsets.bin").unlink(), id="no offsets"),
        pytest.param(_other_last_offset, id="other last offset"),
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


@pytest.mark.parametrize("old", ["w1 w2", "w1"], ids=["as long", "shorter"])
def test_store_that_is_built_anew_is_unfinished_until_it_is_done(tmp_path, monkeypatch, old):
    """A rebuild, stopped half-way, once left new tokens under old offsets: another text each."""
    monkeypatch.setattr(tokens, "_CHUNK", 1)
    tokenizer = make_tokenizer("bert")
    TokenStore.build([old, "w5"], tokenizer, tmp_path, max_tokens=9, total=2)

    def stops():
        yield from ("w3", "w4 w6")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        TokenStore.build(stops(), tokenizer, tmp_path, max_tokens=9, total=2)
    with pytest.raises(ValueError, match="build it again"):
        TokenStore.open(tmp_path)


# --- builds that are killed, and large ones ------------------------------------------------------

PASSAGES = [" ".join(WORDS[i % 7 : i % 7 + i % 5]) for i in range(11)]  # 4 chunks of 3 texts
FILES = ("tokens.bin", "offsets.bin", "store.json")


def _build(folder, texts=PASSAGES, *, kind="bert", words=WORDS, max_tokens=3):
    """Build with chunks of three texts; gives how many texts were tokenised."""
    done, tokenise = [], tokens._tokenise

    def counted(chunk, *more):
        done.extend(chunk)
        return tokenise(chunk, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK", 3)
        patch.setattr(tokens, "_tokenise", counted)
        tokenizer = make_tokenizer(kind, words=words)
        TokenStore.build(texts, tokenizer, folder, max_tokens=max_tokens, total=11)
    return len(done)


def _contents(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return [(folder / name).read_bytes() for name in FILES]


def _stops_after(n):
    yield from PASSAGES[:n]
    raise InterruptedError


def _begin(folder, n=7):
    with pytest.raises(InterruptedError):
        _build(folder, _stops_after(n))


@pytest.fixture
def uninterrupted(tmp_path):
    assert _build(tmp_path / "whole") == 11
    return _contents(tmp_path / "whole")


@pytest.mark.parametrize("n", range(12))
def test_build_stopped_while_reading_goes_on_at_its_last_whole_chunk(tmp_path, uninterrupted, n):
    _begin(tmp_path / "store", n)
    with pytest.raises(ValueError, match="build it again"):
        TokenStore.open(tmp_path / "store")
    assert _build(tmp_path / "store", iter(PASSAGES)) == 11 - n // 3 * 3
    assert _contents(tmp_path / "store") == uninterrupted


@pytest.mark.parametrize("n_renames", range(6))
def test_build_stopped_while_recording_goes_on(tmp_path, monkeypatch, uninterrupted, n_renames):
    """The files are then longer than the record says; the rest must not stay in them."""
    replace, left = os.replace, iter([True] * n_renames)

    def stops(source, target):
        if not next(left, False):
            raise InterruptedError
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(os, "replace", stops)
        _build(tmp_path / "store")
    assert _build(tmp_path / "store") == 11 - min(3 * max(n_renames - 1, 0), 11)
    assert _contents(tmp_path / "store") == uninterrupted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_build_that_was_killed_goes_on_in_another_process(tmp_path, uninterrupted):
    def killed():
        yield from PASSAGES[:8]
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            _build(tmp_path / "store", killed())
        finally:
            os._exit(1)  # never back into pytest
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert _build(tmp_path / "store") == 5
    assert _contents(tmp_path / "store") == uninterrupted


@pytest.mark.parametrize(
    "other", [{"words": WORDS[::-1]}, {"kind": "roberta"}, {"max_tokens": 2}],
    ids=["vocabulary", "special tokens", "max_tokens"],
)
def test_build_with_other_settings_begins_anew(tmp_path, other):
    _build(tmp_path / "whole", **other)
    _begin(tmp_path / "store")
    assert _build(tmp_path / "store", **other) == 11
    assert _contents(tmp_path / "store") == _contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["w9", *PASSAGES[1:]], id="one changed"),
        pytest.param([*PASSAGES[1::-1], *PASSAGES[2:]], id="two exchanged"),
        pytest.param(PASSAGES[:5], id="fewer than are done"),
        pytest.param(["".join(PASSAGES[:2]), "", *PASSAGES[2:]], id="cut elsewhere"),
    ],
)
def test_build_with_other_texts_is_refused_and_keeps_what_is_done(tmp_path, texts):
    _begin(tmp_path)
    with pytest.raises(ValueError, match="the 6 texts .* delete the folder") as error:
        _build(tmp_path, texts)
    assert str(tmp_path) in str(error.value)
    assert _build(tmp_path) == 5


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "progress.json"])
def test_unfinished_files_that_lack_what_the_record_says_are_made_anew(
    tmp_path, uninterrupted, name
):
    """After a power failure the record may be on the disk and the tokens not."""
    _begin(tmp_path / "store")
    _cut_file(name, 9)(tmp_path / "store")
    assert _build(tmp_path / "store") == 11
    assert _contents(tmp_path / "store") == uninterrupted


def test_text_that_is_none_is_refused_with_its_row(tmp_path):
    with pytest.raises(TypeError, match="got nan in row 4: fill it or leave it out"):
        _build(tmp_path, [*PASSAGES[:4], float("nan")])


def test_chunks_of_long_texts_are_short(monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK_CHARACTERS", 10)
    texts = ["a" * 4, "b" * 4, "c" * 4, "d" * 50, "", "e"]
    assert list(tokens._chunks(texts)) == [texts[:3], texts[3:4], texts[4:]]


def test_opening_reads_no_offsets(tmp_path):
    """A hundred million rows: sparse files of 800 MB of offsets and one token."""
    store = TokenStore.build(["w1"], make_tokenizer("bert"), tmp_path, max_tokens=3, total=1)
    assert len(store) == 1
    n_rows = 100_000_000
    with (tmp_path / "offsets.bin").open("r+b") as file:
        file.truncate(8 * n_rows)
        file.seek(8 * n_rows)
        file.write(np.int64(1).tobytes())
    meta = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(meta | {"rows": n_rows}))
    tracemalloc.start()
    started = time.perf_counter()
    store = TokenStore.open(tmp_path)
    wall_s, peak_bytes = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.gather(torch.tensor([n_rows - 1]), 9)[0].tolist() == [5]
    assert wall_s < 0.5
    assert peak_bytes < 100_000


def test_memory_of_a_build_does_not_grow_with_its_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 100)
    tokenizer, peaks = make_tokenizer("bert"), []
    for n in (1000, 1000, 20_000):  # the first warms up
        texts = (f"w{i % 40} w1" for i in range(n))
        tracemalloc.start()
        TokenStore.build(texts, tokenizer, tmp_path / str(n), max_tokens=3, total=n)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 200_000  # offsets kept in a list would be 700 kB more


_MILLION = """
import json, resource, sys, time
from pathlib import Path
from transformers import AutoTokenizer
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import TokenStore
tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
words = sorted(word for word in tokenizer.get_vocab() if word.isalpha()) * 2
texts = (" ".join(words[i * 37 % 20_000 :][: 15 + i % 21]) for i in range(1_000_000))
started = time.perf_counter()
store = TokenStore.build(texts, tokenizer, Path(sys.argv[1]), max_tokens=512, total=1_000_000)
wall_s = time.perf_counter() - started
peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rows": len(store), "tokens": int(store.offsets[-1]), "wall_s": wall_s,
                  "peak_bytes": peak_bytes}))
"""


@pytest.mark.slow
def test_a_million_passages_are_built_in_less_than_two_gigabytes(tmp_path):
    child = [sys.executable, "-c", _MILLION, tmp_path]
    said = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = json.loads(said.splitlines()[-1])
    print(measured)
    assert measured["rows"] == 1_000_000
    assert measured["peak_bytes"] < 2 * 1024**3


def test_tokenizers_switched_to_one_core_are_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "False")
    with caplog.at_level(logging.WARNING, logger=tokens.__name__):
        _build(tmp_path)
        assert "TOKENIZERS_PARALLELISM is off" in caplog.text
        caplog.clear()
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
        _build(tmp_path)
        assert not caplog.text


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


@pytest.mark.parametrize("split", [False, True], ids=["", "special tokens split"])
def test_store_on_disk_holds_what_the_tokenizer_gives_and_leaves_its_settings(
    tokenizer, tmp_path, monkeypatch, split
):
    monkeypatch.setattr(tokenizer, "split_special_tokens", split)
    texts = [*TEXTS, "[SEP]", "the [SEP]"]
    expected = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=4)
    tokenizer.backend_tokenizer.enable_padding(length=9)  # as a call with padding leaves it
    tokenizer.backend_tokenizer.no_truncation()
    before = tokenizer.backend_tokenizer.to_str()
    store = TokenStore.build(texts, tokenizer, tmp_path, max_tokens=4, total=len(texts))
    assert store.gather(torch.arange(len(texts)), 99)[0].tolist() == sum(expected["input_ids"], [])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_template_survives_a_vocabulary_without_the_letters():
    """Letters that a vocabulary without an unknown token lacks give no token at all."""
    pieces = Tokenizer(models.BPE({"[CLS]": 0, "[SEP]": 1, "z": 2}, []))
    pieces.post_processor = make_tokenizer("bert").backend_tokenizer.post_processor
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_input_names=["input_ids", "token_type_ids"]
    )
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == []
    assert PairTemplate.of(tokenizer) == PairTemplate((0,), (2,), (2,), (0, 1))


def test_segments_of_another_form_are_refused():
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A:0 [SEP]:0", pair="[CLS]:2 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    with pytest.raises(ValueError, match="expected segments 0 .* BERT's or RoBERTa's form"):
        PairTemplate.of(tokenizer)


def test_no_texts_and_no_pairs(tokenizer):
    nothing, none = TokenStore.of_texts([], tokenizer), torch.empty(0, dtype=torch.int64)
    assert len(nothing) == 0
    packed = pack(
        nothing, nothing, none, none, template=PairTemplate.of(tokenizer), query_tokens=3,
        passage_tokens=3,
    )
    assert packed.input_ids.tolist() == packed.position_ids.tolist() == []
    assert (packed.cu_seqlens.tolist(), packed.max_length) == ([0], 0)


class _Reads(TorchFunctionMode):
    """Counts what makes the host wait for a device: values read from it, or sent to it."""

    NAMES = ("item", "tolist", "__int__", "__bool__", "__index__", "cpu", "numpy", "nonzero", "to")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        unsized = name == "repeat_interleave" and "output_size" not in kwargs
        if name in (*self.NAMES, "tensor", "as_tensor") or unsized:
            self.seen.append(name)
        return function(*args, **kwargs)


def _stores_and_rows(device="cpu"):
    stores = [TokenStore.from_lists([[7, 8, 9], [], [5]]).to(device) for _ in range(2)]
    return *stores, *torch.tensor([[0, 1, 2, 0], [2, 0, 0, 1]], device=device)


BERT = {
    "template": PairTemplate((1,), (2, 2), (3,), (0, 1)), "query_tokens": 2, "passage_tokens": 9,
}


def test_packing_reads_from_the_device_once():
    stores_and_rows = _stores_and_rows()
    with _Reads() as reads:
        pack(*stores_and_rows, **BERT)
    assert reads.seen == ["tolist"]


@pytest.mark.gpu
def test_packing_waits_for_the_device_once():
    stores_and_rows = _stores_and_rows("cuda")
    pack(*stores_and_rows, **BERT)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            packed = pack(*stores_and_rows, **BERT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == 1
    assert torch.equal(packed.input_ids.cpu(), pack(*_stores_and_rows(), **BERT).input_ids)


# --- batches ------------------------------------------------------------------------------------


@few
@given(
    lengths=st.lists(st.integers(0, 50), max_size=40),
    budget=st.integers(1, 200),
    among=st.integers(1, 9),
)
def test_batches_are_a_partition_within_the_budget(lengths, budget, among):
    batches = plan_batches(torch.tensor(lengths, dtype=torch.int64), budget, among=among)
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


def _ends(lengths, among, planned_for):
    """When the last of so many is done, each taking the next batch; a token takes one step."""
    busy = [0] * among
    for batch in plan_batches(lengths, 1024, among=planned_for):
        busy[busy.index(min(busy))] += int(lengths[batch].sum())
    return max(busy)


@pytest.mark.parametrize("among", [4, 8])
def test_batches_taken_by_many_end_together(among):
    lists = torch.randint(40, 180, (20, 200), generator=torch.Generator().manual_seed(0))
    lists = [lengths[: 10 * (n + 1)] for n, lengths in enumerate(lists)]
    even = sum(int(lengths.sum()) for lengths in lists) / among
    apart = sum(_ends(lengths, among, 1) for lengths in lists)
    together = sum(_ends(lengths, among, among) for lengths in lists)
    assert together - even < 0.6 * (apart - even)


@few
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    multiple=st.sampled_from([1, 4, 16, 128]),
)
def test_filler_comes_behind_and_brings_a_round_number(lengths, multiple):
    positions = torch.cat([torch.arange(n) for n in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = Packed(positions + 5, positions, positions % 2, ends, max(lengths))
    filled = packed.filled(multiple)
    assert len(filled.input_ids) % multiple == 0
    assert 0 <= len(filled.input_ids) - sum(lengths) < multiple
    for name in ("input_ids", "position_ids", "segment_ids", "cu_seqlens"):
        before, after = getattr(packed, name), getattr(filled, name)
        assert torch.equal(after[: len(before)], before)
        assert after.dtype == before.dtype
    sizes = filled.cu_seqlens.diff()
    assert sizes.min() >= 1
    assert sizes.max() == packed.max_length == filled.max_length
    assert torch.equal(filled.position_ids, torch.cat([torch.arange(n) for n in sizes]))
    assert filled.cu_seqlens[-1] == len(filled.input_ids)


def test_shared_memory_maps_are_not_written_through(tmp_path):
    """The map is private: what training does to a tensor never reaches the store's file."""
    store = TokenStore.build(["w1 w2"], make_tokenizer("bert"), tmp_path, max_tokens=9, total=1)
    store.flat[0] = 9
    assert np.fromfile(tmp_path / "tokens.bin", np.uint16).tolist() == [5, 6]
