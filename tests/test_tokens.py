"""Tokens: ragged gathering, stores on disk that resume, pairs packed as the tokenizer builds them."""

import json
import os
import signal
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import KINDS, WORDS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rdl_core import tokens
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import Packed, PairTemplate, TokenStore, pack, plan_batches

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
id_lists = st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=6), min_size=1, max_size=6)
TEXTS = [
    "What is the capital of Peru?", "", "lima", "Zürich's naïve Ωmega: x_1 -> [SEP] of two!",
    "a b c d e f g h i j k l m n o p", "the mean of the values  is nan\nwhere there are none",
]  # fmt: skip


def ids_of(store, rows=None, max_tokens=99):
    """Ids of some rows, or of all, end to end."""
    rows = torch.arange(len(store)) if rows is None else torch.tensor(rows, dtype=torch.int64)
    lengths = store.lengths(rows, max_tokens)
    return store.gather(rows, lengths, int(lengths.sum())).tolist()


@few
@given(rows=id_lists, data=st.data(), max_tokens=st.integers(1, 7))
def test_gather_equals_slicing(rows, data, max_tokens):
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    store, cut = TokenStore.from_lists(rows), [rows[i][:max_tokens] for i in which]
    assert ids_of(store, which, max_tokens) == sum(cut, [])
    lengths = store.lengths(torch.tensor(which, dtype=torch.int64), max_tokens)
    assert lengths.tolist() == list(map(len, cut))


@pytest.mark.parametrize(("n_words", "stored"), [(40_000, torch.int16), (70_000, torch.int32)])
def test_ids_of_large_vocabularies_survive_disk_and_memory(tmp_path, n_words, stored):
    """XLM-RoBERTa has 250,002 words: ids above 65,535 once raised an OverflowError in memory."""
    tokenizer = make_tokenizer("bert", words=[f"w{i}" for i in range(n_words)])
    texts = ["w0 w32763 w32764", f"w{n_words - 1}", "", "w39999 w1"]
    expected = [4, 32767, 32768, n_words + 3, 40003, 5]
    store = TokenStore.build(texts, tokenizer, tmp_path, max_tokens=9, total=4)
    for kept in (store, TokenStore.open(tmp_path), TokenStore.of_texts(texts, tokenizer)):
        assert (kept.flat.dtype, ids_of(kept)) == (stored, expected)
    store.flat[0] = 9  # the map is private: a write reaches no file
    assert ids_of(TokenStore.open(tmp_path)) == expected


def _recount(folder, n_rows=7):
    meta = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(meta | {"rows": n_rows}))


DAMAGE = {
    "unfinished": lambda folder: (folder / "store.json").unlink(),
    "no tokens": lambda folder: (folder / "tokens.bin").unlink(),
    "half a token": lambda folder: os.truncate(folder / "tokens.bin", 3),
    "half an offset": lambda folder: os.truncate(folder / "offsets.bin", 20),
    "half a record": lambda folder: os.truncate(folder / "store.json", 5),
    "other last offset": lambda folder: np.array([0, 2, 4]).tofile(folder / "offsets.bin"),
    "other row count": _recount,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_unfinished_or_damaged_store_is_refused(tmp_path, damage):
    TokenStore.build(["w1 w2", "w3"], make_tokenizer("bert"), tmp_path, max_tokens=9, total=2)
    damage(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no whole token store .*build it again"):
        TokenStore.open(tmp_path)

PASSAGES = [" ".join(WORDS[i % 7 : i % 7 + i % 5]) for i in range(11)]  # 4 chunks of 3 texts


def _build(folder, texts=PASSAGES, *, kind="bert", words=WORDS, max_tokens=3):
    """Build with chunks of three texts; gives how many texts were tokenised."""
    done, tokenise = [], tokens._tokenise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK", 3)
        patch.setattr(tokens, "_tokenise", lambda chunk, *x: done.extend(chunk) or tokenise(chunk, *x))
        tokenizer = make_tokenizer(kind, words=words)
        TokenStore.build(texts, tokenizer, folder, max_tokens=max_tokens, total=11)
    return len(done)


def _contents(folder):
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents.keys() == {"offsets.bin", "store.json", "tokens.bin"}
    return contents


def _kill(folder, *, reading=99, renaming=99):
    """A build in a process of its own that is killed at its n-th text, or at its n-th rename."""
    if not (child := os.fork()):
        replace, left = os.replace, iter(range(renaming))

        def texts():
            yield from PASSAGES[:reading]
            os.kill(os.getpid(), signal.SIGKILL)

        def rename(*names):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*names)

        try:
            os.replace = rename
            _build(folder, texts())
        finally:
            os._exit(1)  # never back into pytest
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(ValueError, match="build it again"):
        TokenStore.open(folder)


@pytest.mark.parametrize("n", range(12))
def test_build_that_was_killed_goes_on_at_its_last_whole_chunk(tmp_path, n):
    """Killed while a record is put in place, it leaves files that are longer than the record says."""
    store, whole = tmp_path / "store", tmp_path / "whole"
    assert _build(whole) == 11
    rows = make_tokenizer("bert")(PASSAGES, add_special_tokens=False)["input_ids"]
    assert ids_of(TokenStore.open(whole)) == sum((row[:3] for row in rows), [])
    for kill, done in (({"reading": n}, n // 3 * 3), ({"renaming": n % 5}, max(n % 5 - 1, 0) * 3)):
        _kill(store, **kill)
        assert _build(store, iter(PASSAGES)) == 11 - done
        assert _contents(store) == _contents(whole)


OTHER = [
    {"words": WORDS[::-1]}, {"kind": "roberta"}, {"max_tokens": 2},
    "tokens.bin", "offsets.bin", "progress.json",
]  # fmt: skip


@pytest.mark.parametrize("other", OTHER, ids=str)
def test_killed_build_begins_anew_with_other_settings_or_without_its_files(tmp_path, other):
    """As after a power failure; a rebuild once left new tokens under old offsets."""
    store, whole, own = tmp_path / "store", tmp_path / "whole", {} if isinstance(other, str) else other
    _kill(store, renaming=3 if own else 5)  # 5: the last one
    if not own:
        os.truncate(store / other, 9)
    _build(whole, **own)
    assert _build(store, **own) == 11
    assert _contents(store) == _contents(whole)


def test_chunks_of_long_texts_are_short_and_hold_texts(monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK_CHARACTERS", 10)
    texts = ["a" * 4, "b" * 4, "c" * 4, "d" * 50, "", "e"]
    assert list(tokens._chunks(texts)) == [texts[:3], texts[3:4], texts[4:]]
    with pytest.raises(TypeError, match="expected texts, got nan: fill it or leave it out"):
        list(tokens._chunks([*texts, float("nan")]))


def test_memory_of_a_build_does_not_grow_with_its_texts_and_opening_reads_no_offsets(tmp_path):
    """A hundred million rows: sparse files of 800 MB of offsets and one token."""

    def peak_bytes(function, *args, **own):
        tracemalloc.start()
        function(*args, **own)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    n_rows, own, peaks = 100_000_000, {"tokenizer": make_tokenizer("bert"), "max_tokens": 3}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK", 100)
        for n in (1000, 1000, 20_000):  # the first warms up
            texts, folder = (f"w{i % 40} w1" for i in range(n)), tmp_path / str(len(peaks))
            peaks.append(peak_bytes(TokenStore.build, texts, folder=folder, total=n, **own))
    assert peaks[2] - peaks[1] < 200_000  # offsets kept in a list would be 700 kB more
    TokenStore.build(["w1"], folder=tmp_path, total=1, **own)
    os.truncate(tmp_path / "offsets.bin", 8 * n_rows)
    with (tmp_path / "offsets.bin").open("ab") as file:
        file.write(np.int64(1).tobytes())
    _recount(tmp_path, n_rows)
    assert peak_bytes(TokenStore.open, tmp_path) < 100_000
    assert ids_of(TokenStore.open(tmp_path), [n_rows - 1]) == [5]


@pytest.fixture(scope="module", params=[*KINDS, EMBEDDED_ENCODER])
def tokenizer(request):
    if request.param in KINDS:
        return make_tokenizer(request.param)
    return AutoTokenizer.from_pretrained(encoder_path(request.param))


def _pack(queries, passages, tokenizer, *, query_tokens=999, passage_tokens=999):
    rows = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(passages)))
    return pack(
        TokenStore.of_texts(queries, tokenizer), TokenStore.of_texts(passages, tokenizer), *rows.T,
        template=PairTemplate.of(tokenizer), query_tokens=query_tokens, passage_tokens=passage_tokens,
    )  # fmt: skip


def _cuts(packed, part):
    bounds = packed.cu_seqlens.tolist()
    return [part[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def test_pairs_are_packed_as_the_tokenizer_builds_them(tokenizer):
    passages = [*TEXTS, " ".join(WORDS)]
    packed = _pack(TEXTS, passages, tokenizer)
    theirs = tokenizer(*map(list, zip(*((q, p) for q in TEXTS for p in passages), strict=True)))
    zeros = [[0] * len(ids) for ids in theirs["input_ids"]]
    assert _cuts(packed, packed.input_ids) == theirs["input_ids"]
    assert _cuts(packed, packed.segment_ids) == theirs.get("token_type_ids", zeros)
    assert _cuts(packed, packed.position_ids) == [list(range(len(i))) for i in zeros]
    assert (packed.max_length, packed.cu_seqlens.dtype) == (max(map(len, zeros)), torch.int32)
    nothing = _pack([], [], tokenizer)
    assert nothing.input_ids.tolist() == nothing.position_ids.tolist() == []
    assert (nothing.cu_seqlens.tolist(), nothing.max_length) == ([0], 0)
    special, rows = PairTemplate.of(tokenizer), tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert special.n_tokens == tokenizer.num_special_tokens_to_add(pair=True)
    for most in ((1, 1), (2, 5), (40, 3)):  # each is cut to its own length
        packed = _pack(TEXTS, TEXTS, tokenizer, query_tokens=most[0], passage_tokens=most[1])
        assert _cuts(packed, packed.input_ids) == [
            [*special.before, *q[: most[0]], *special.between, *p[: most[1]], *special.after]
            for q in rows for p in rows
        ]  # fmt: skip


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
    assert ids_of(store) == sum(expected["input_ids"], [])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_templates_are_read_off_any_vocabulary():
    """A tokenizer may cut even "a" in two, or, without an unknown token, give nothing for it."""

    def made_of(model, normalizer, **own):
        pieces = Tokenizer(model)
        pieces.post_processor = make_tokenizer("bert").backend_tokenizer.post_processor
        pieces.normalizer = normalizer
        return PreTrainedTokenizerFast(tokenizer_object=pieces, **own)

    pieces = models.WordPiece({"[UNK]": 0, "_": 1, "##a": 2, "##b": 3}, unk_token="[UNK]")
    in_two = made_of(pieces, normalizers.Prepend("_"))
    names, pieces = ["input_ids", "token_type_ids"], models.BPE({"[CLS]": 0, "[SEP]": 1, "z": 2}, [])
    none = made_of(pieces, normalizers.NFC(), model_input_names=names)
    ids = [x("a", add_special_tokens=False)["input_ids"] for x in (in_two, none)]
    assert [len(x) for x in ids] == [2, 0]
    assert PairTemplate.of(in_two).n_tokens == 3
    assert PairTemplate.of(none) == PairTemplate((0,), (2,), (2,), (0, 1))


def test_segments_are_the_tokenizers_own_and_those_of_another_form_are_refused():
    """Segments that a tokenizer leaves out once gave other scores than the saved folder elsewhere."""
    tokenizer = make_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert PairTemplate.of(tokenizer).segments == (0, 0)
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A:0 [SEP]:0", pair="[CLS]:2 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected segments 0 .* BERT's or RoBERTa's form"):
        PairTemplate.of(tokenizer)


WAITS = "item tolist __int__ __bool__ __index__ cpu numpy nonzero to tensor as_tensor".split()


def test_packing_reads_from_the_device_once():
    """What makes the host wait for a device: values read from it, or sent to it."""
    seen = []

    class Reads(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs, name = kwargs or {}, getattr(function, "__name__", "")
            if name in WAITS or (name == "repeat_interleave" and "output_size" not in kwargs):
                seen.append(name)
            return function(*args, **kwargs)

    store = TokenStore.from_lists([[7, 8, 9], [], [5]])
    rows = torch.tensor([[0, 1, 2, 0], [2, 0, 0, 1]])
    template = PairTemplate((1,), (2, 2), (3,), (0, 1))
    with Reads():
        pack(store, store, *rows, template=template, query_tokens=2, passage_tokens=9)
    assert seen == ["tolist"]


@few
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_batches_are_a_partition_within_the_budget(lengths, budget, workers):
    batches = plan_batches(torch.tensor(lengths, dtype=torch.int64), budget, workers=workers)
    sizes = [[lengths[i] for i in batch.tolist()] for batch in batches]
    assert sorted(torch.cat(batches).tolist() if batches else []) == list(range(len(lengths)))
    assert all(len(size) == 1 or max(size) * len(size) <= budget for size in sizes)
    assert sum(sizes, []) == sorted(lengths, reverse=True)
    if workers == 1:
        assert all(max(size) * (len(size) + 1) > budget for size in sizes[:-1])  # the next does not fit


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
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from([1, 4, 16, 128]),
    st.sampled_from([1, 4]),
)  # fmt: skip
def test_filler_comes_behind_and_brings_a_round_number(lengths, multiple, places):
    positions = torch.cat([torch.arange(n) for n in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = Packed(positions + 5, positions, positions % 2, ends, max(lengths))
    filled = packed.filled(multiple, places)
    assert len(filled.input_ids) == -(-sum(lengths) // multiple) * multiple == filled.cu_seqlens[-1]
    for name in ("input_ids", "position_ids", "segment_ids", "cu_seqlens"):
        before, after = getattr(packed, name), getattr(filled, name)
        torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=0)
    sizes = filled.cu_seqlens.diff()
    assert 1 <= sizes.min() <= sizes.max() == packed.max_length
    assert filled.max_length == -(-packed.max_length // places) * places
    assert torch.equal(filled.position_ids, torch.cat([torch.arange(n) for n in sizes]))
