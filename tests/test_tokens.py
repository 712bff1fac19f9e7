"""Tokens: stores on disk, pairs packed as the tokenizer builds them, batches."""

import os
import signal
import tracemalloc
from functools import partial
from itertools import chain
from unittest.mock import patch

import numpy as np
import pytest
import torch
from common import KINDS, WORDS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rdl_core import tokens
from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
TEXTS = [
    "What is the capital of Peru?", "", "lima", "Zürich's naïve Ωmega: x_1 -> [SEP] of two!",
    "a b c d e f g h i j k l m n o p", "the mean of the values  is nan\nwhere there are none",
]  # fmt: skip


def ids_of(store, rows=None):
    """Ids of some rows, or of all, end to end."""
    rows = torch.arange(len(store)) if rows is None else torch.tensor(rows)
    lengths = store.lengths(rows, max_tokens=99)
    return store.gather(rows, lengths, int(lengths.sum())).tolist()


@pytest.mark.parametrize(("n_words", "stored"), [(40_000, torch.int16), (70_000, torch.int32)])
def test_ids_of_large_vocabularies_survive_disk_and_memory(tmp_path, n_words, stored):
    """XLM-RoBERTa has 250,002 words: ids above 65,535 once raised an OverflowError in memory."""
    tokenizer = make_tokenizer("bert", words=[f"w{i}" for i in range(n_words)])
    texts = ["w0 w32763 w32764", f"w{n_words - 1}", "", "w39999 w1"]
    expected = [4, 32767, 32768, n_words + 3, 40003, 5]
    store = TokenStore.build(texts, tokenizer, tmp_path, max_tokens=9, total=4)
    assert store.flat.dtype == stored
    for kept in (store, TokenStore.open(tmp_path), TokenStore.of_texts(texts, tokenizer)):
        assert ids_of(kept) == expected
    store.flat[0] = 9  # the map is private: a write reaches no file
    assert ids_of(TokenStore.open(tmp_path)) == expected


@pytest.mark.parametrize(("name", "damage"), [
    ("store.json", None), ("store.json", lambda raw: raw[:5]),
    ("store.json", lambda raw: raw.replace(b"int16", b"uint16")),  # as it once was
    ("tokens.bin", None), ("tokens.bin", lambda raw: raw[:3]),
    ("offsets.bin", lambda raw: raw[:20]), ("offsets.bin", lambda raw: raw[:16] + b"\4" + bytes(7)),
])  # fmt: skip
def test_unfinished_or_damaged_store_is_refused(tmp_path, name, damage):
    TokenStore.build(["w1 w2", "w3"], make_tokenizer("bert"), tmp_path, max_tokens=9, total=2)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} holds no whole token store .*build it again"):
        TokenStore.open(tmp_path)


def test_a_build_that_was_killed_is_refused_and_made_again(tmp_path):
    texts, tokenizer = [" ".join(WORDS[:n]) for n in range(9)], make_tokenizer("bert")
    build = partial(TokenStore.build, tokenizer=tokenizer, max_tokens=3, total=9)
    build(texts, folder=tmp_path / "whole")
    build(texts[::-1], folder=tmp_path / "own")  # an earlier one, of other texts
    if not (child := os.fork()):
        dying = (os.kill(os.getpid(), signal.SIGKILL) for _ in "x")
        with patch.object(tokens, "_CHUNK", 2):
            build(chain(texts[:5], dying), folder=tmp_path / "own")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(ValueError, match="build it again"):
        TokenStore.open(tmp_path / "own")
    build(texts, folder=tmp_path / "own")
    contents = [
        {x.name: x.read_bytes() for x in (tmp_path / name).iterdir()} for name in ("own", "whole")
    ]
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"offsets.bin", "store.json", "tokens.bin"}


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(TypeError, match="expected texts, got nan: fill it or leave it out"):
        texts = ["w1", "", float("nan")]
        TokenStore.build(texts, make_tokenizer("bert"), tmp_path, max_tokens=3, total=3)


def test_memory_does_not_grow_with_the_texts_and_opening_reads_no_offsets(tmp_path, monkeypatch):
    """A hundred million rows: sparse files of 800 MB of offsets and one token."""

    def peak_bytes(function, **own):
        tracemalloc.start()
        function(folder=tmp_path, **own)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    build = partial(TokenStore.build, tokenizer=make_tokenizer("bert"), max_tokens=3)
    monkeypatch.setattr(tokens, "_CHUNK", 100)
    peaks = [peak_bytes(build, texts=(f"w{i % 40} w1" for i in range(n)), total=n)
             for n in (1000, 1000, 20_000)]  # fmt: skip
    assert peaks[2] - peaks[1] < 200_000  # the first warms up; a list of offsets would be 700 kB more
    build(["w1"], folder=tmp_path, total=1)
    np.memmap(tmp_path / "offsets.bin", np.int64, "r+", shape=10**8 + 1)[-1] = 1
    assert peak_bytes(TokenStore.open) < 100_000
    assert ids_of(TokenStore.open(tmp_path), [10**8 - 1]) == [5]


@pytest.fixture(scope="module", params=[*KINDS, EMBEDDED_ENCODER])
def tokenizer(request):
    if request.param in KINDS:
        return make_tokenizer(request.param)
    return AutoTokenizer.from_pretrained(embedded_path(request.param))


def _pack(queries, passages, tokenizer, *, query_tokens=999, passage_tokens=999):
    rows = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(passages)))
    return pack(
        TokenStore.of_texts(queries, tokenizer), TokenStore.of_texts(passages, tokenizer), *rows.T,
        template=PairTemplate.of(tokenizer), query_tokens=query_tokens, passage_tokens=passage_tokens,
    )  # fmt: skip


def _cuts(packed, part):
    return [sequence.tolist() for sequence in part.tensor_split(packed.cu_seqlens[1:-1].long())]


def test_pairs_are_packed_as_the_tokenizer_builds_them_and_cut_each_to_its_own_length(tokenizer):
    passages = [*TEXTS, " ".join(WORDS)]
    packed = _pack(TEXTS, passages, tokenizer)
    theirs = tokenizer([x for x in TEXTS for _ in passages], passages * len(TEXTS))
    zeros = [[0] * len(ids) for ids in theirs["input_ids"]]
    assert _cuts(packed, packed.input_ids) == theirs["input_ids"]
    assert _cuts(packed, packed.segment_ids) == theirs.get("token_type_ids", zeros)
    assert _cuts(packed, packed.position_ids) == [list(range(len(i))) for i in zeros]
    assert (packed.max_length, packed.cu_seqlens.dtype) == (max(map(len, zeros)), torch.int32)
    nothing = _pack([], [], tokenizer)
    assert (nothing.input_ids.tolist(), nothing.cu_seqlens.tolist(), nothing.max_length) == ([], [0], 0)
    own, rows = PairTemplate.of(tokenizer), tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert own.n_tokens == tokenizer.num_special_tokens_to_add(pair=True)
    for n, m in ((1, 1), (2, 5), (40, 3)):
        packed = _pack(TEXTS, TEXTS, tokenizer, query_tokens=n, passage_tokens=m)
        cut = [[*own.before, *q[:n], *own.between, *p[:m], *own.after] for q in rows for p in rows]
        assert _cuts(packed, packed.input_ids) == cut


@pytest.mark.parametrize("split", [False, True], ids=["", "special tokens split"])
def test_store_holds_what_the_tokenizer_gives_and_leaves_it(tokenizer, tmp_path, monkeypatch, split):
    monkeypatch.setattr(tokenizer, "split_special_tokens", split)
    texts = [*TEXTS, "[SEP]", "the [SEP]"]
    expected = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=4)
    tokenizer.backend_tokenizer.enable_padding(length=9)  # as a call with padding leaves it
    tokenizer.backend_tokenizer.no_truncation()
    before = tokenizer.backend_tokenizer.to_str()
    store = TokenStore.build(texts, tokenizer, tmp_path, max_tokens=4, total=len(texts))
    assert ids_of(store) == sum(expected["input_ids"], [])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_templates_are_read_off_any_vocabulary_with_the_segments_the_tokenizer_gives():
    """A tokenizer may cut even "a" in two, or, without an unknown token, give nothing for it. Segments
    that it leaves out once gave other scores than the saved folder elsewhere."""
    in_two = Tokenizer(models.WordPiece({"[UNK]": 0, "_": 1, "##a": 2, "##b": 3}, unk_token="[UNK]"))
    in_two.normalizer = normalizers.Prepend("_")
    nothing = Tokenizer(models.BPE({"[CLS]": 0, "[SEP]": 1, "z": 2}, []))
    for pieces, n_ids, names, segments in (
        (in_two, 2, ["input_ids", "token_type_ids"], (0, 1)), (nothing, 0, ["input_ids"], (0, 0)),
    ):  # fmt: skip
        pieces.post_processor = make_tokenizer("bert").backend_tokenizer.post_processor
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, model_input_names=names)
        assert len(tokenizer("a", add_special_tokens=False)["input_ids"]) == n_ids
        assert PairTemplate.of(tokenizer) == PairTemplate((0,), (2,), (2,), segments)
    form = "[CLS]:2 $A:0 [SEP]:0", "[CLS]:2 $A:0 [SEP]:0 $B:1 [SEP]:1", [("[CLS]", 0), ("[SEP]", 2)]
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(*form)
    with pytest.raises(ValueError, match="expected segments 0 .* BERT's or RoBERTa's form"):
        PairTemplate.of(tokenizer)


def test_packing_reads_from_the_device_once():
    waits = "item tolist __int__ __bool__ __index__ cpu numpy nonzero to tensor as_tensor".split()
    seen = []  # values read from the device, or sent to it, for which the host waits

    class Reads(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs, name = kwargs or {}, getattr(function, "__name__", "")
            if name in waits or (name == "repeat_interleave" and "output_size" not in kwargs):
                seen.append(name)
            return function(*args, **kwargs)

    store = TokenStore.from_lists([[7, 8, 9], [], [5]])
    rows = torch.tensor([[0, 1, 2, 0], [2, 0, 0, 1]])
    template = PairTemplate((1,), (2, 2), (3,), (0, 1))
    with Reads():
        pack(store, store, *rows, template=template, query_tokens=2, passage_tokens=9)
    assert seen == ["tolist"]


@few
@given(st.lists(st.binary(max_size=12), max_size=5), st.integers(1, 5), st.integers(1, 4))
def test_pieces_are_consecutive_cuts_of_their_rows(texts, size, most):
    rows = [*range(len(texts)), *range(len(texts))]
    store, own, source = TokenStore.from_lists(texts).pieces(torch.tensor(rows).long(), size, most)
    cuts = [store.flat[store.offsets[i] : store.offsets[i + 1]][:size].tolist() for i in own]
    expected = [(place, [*texts[row][i * size : (i + 1) * size]]) for place, row in enumerate(rows)
                for i in range(most) if i == 0 or i * size < len(texts[row])]  # fmt: skip
    assert list(zip(source.tolist(), cuts, strict=True)) == expected


@few
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_batches_are_a_partition_within_the_budget(lengths, budget, workers):
    batches = plan_batches(torch.tensor(lengths, dtype=torch.int64), budget, workers=workers)
    sizes = [[lengths[i] for i in batch.tolist()] for batch in batches]
    assert sorted(torch.cat(batches).tolist() if batches else []) == list(range(len(lengths)))
    assert all(len(size) == 1 or max(size) * len(size) <= budget for size in sizes)
    assert sum(sizes, []) == sorted(lengths, reverse=True)
    assert workers > 1 or all(max(size) * (len(size) + 1) > budget for size in sizes[:-1])  # full


@pytest.mark.parametrize("workers", [4, 8])
def test_batches_taken_by_many_end_together(workers):
    def end(lengths, planned_for):
        """When the last worker is done, each taking the next batch; a token takes one step."""
        busy = [0] * workers
        for batch in plan_batches(lengths, 1024, workers=planned_for):
            busy[busy.index(min(busy))] += int(lengths[batch].sum())
        return max(busy) - int(lengths.sum()) / workers

    lists = torch.randint(40, 180, (20, 200), generator=torch.Generator().manual_seed(0))
    lists = [lengths[: 10 * (n + 1)] for n, lengths in enumerate(lists)]
    apart, together = (sum(end(lengths, n) for lengths in lists) for n in (1, workers))
    assert together < 0.6 * apart


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from([1, 4, 16, 128]),
       st.sampled_from([1, 4]))  # fmt: skip
def test_filler_comes_behind_and_brings_a_round_number(lengths, multiple, places):
    positions = torch.cat([torch.arange(n) for n in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = Packed(positions + 5, positions, positions % 2, ends, max(lengths))
    filled = packed.filled(multiple, places)
    assert len(filled.input_ids) == -(-sum(lengths) // multiple) * multiple == filled.cu_seqlens[-1]
    for name in ("input_ids", "position_ids", "segment_ids", "cu_seqlens"):
        before = getattr(packed, name)
        assert torch.equal(getattr(filled, name)[: len(before)], before)
    sizes = filled.cu_seqlens.diff()
    assert 1 <= sizes.min() <= sizes.max() == packed.max_length
    assert filled.max_length == -(-packed.max_length // places) * places
    assert torch.equal(filled.position_ids, torch.cat([torch.arange(n) for n in sizes]))
