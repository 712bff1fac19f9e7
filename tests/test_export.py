"""Exported folders: other libraries load them unaided and give the student's scores.

One process that has never seen `rdl_core` loads every folder as its card says.

Mutations seen to fail, one at a time: the tokenizer's longest length not set; limits not recorded;
no free axis, or the batch's alone; inputs under each other's names; exported in training mode; the
difference not checked; weights always in one file; nothing quantised, or the wrong file compared;
what a killed export left gone on with; the manifest not found; stages in the wrong order; empty
settings shown.
"""

import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import KINDS, make_student, make_texts
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from transformers import AutoTokenizer

from rdl_core import export as export_module
from rdl_core.commands.export import export_student
from rdl_core.commands.students import open_student
from rdl_core.corpus import Corpus, Texts
from rdl_core.tokens import TokenStore
from rdl_core.export import TOLERANCE, export

QUERY_TOKENS, PASSAGE_TOKENS = 5, 20
QUERIES = make_texts(60, seed=5, longest=QUERY_TOKENS)
PASSAGES = make_texts(60, seed=6, longest=PASSAGE_TOKENS)
PAIRS = list(zip(QUERIES, PASSAGES, strict=True))  # none is cut
STAGES = [
    {
        "lists": {"collection": "rdl/pydocs/train", "teacher": teacher, "add_relevant": False},
        "training": {"loss": loss, "steps": 7, "sampler_options": {}},
        "dev": None,
    }
    for teacher, loss in (("judgments", "info_nce"), ("rank_zephyr", "ranknet"))
]
RECORD = {
    "config": {"encoder": "google/electra-base-discriminator", "seed": 3, "stages": STAGES},
    "device": "NVIDIA H100", "versions": {"torch": "2.13.0"},
}
# What stands in a card, and then more pairs for what it has loaded.
READER = """
import json, re, sys
import numpy as np

pairs, folders = json.load(sys.stdin)
columns = [list(column) for column in zip(*pairs)]
found = {}
for folder in folders:
    card = open(f"{folder}/README.md").read()
    blocks = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    spaces = [{"folder": folder} for _ in blocks]
    for block, space in zip(blocks, spaces):
        exec(block, space)
    theirs, plain, onnx = spaces
    inputs = onnx["tokenizer"](*columns, padding=True, return_tensors="np")
    found[folder] = {
        "max_length": theirs["model"].max_seq_length,
        "example": [np.asarray(space["scores"]).tolist() for space in spaces],
        "sentence-transformers": theirs["model"].predict(pairs, batch_size=7).tolist(),
        "transformers": plain["model"](
            **plain["tokenizer"](*columns, padding=True, return_tensors="pt")
        ).logits[:, 0].tolist(),
        "onnxruntime": onnx["session"].run(["logits"], dict(inputs))[0][:, 0].tolist(),
    }
assert "rdl_core" not in sys.modules
print(json.dumps(found))
"""


def scores_of(student, pairs=PAIRS):
    stores = [TokenStore.of_texts(texts, student.tokenizer) for texts in zip(*pairs, strict=True)]
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        return student.score(*stores, rows, rows, token_budget=500).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An exported student of each kind, by kind."""
    root = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        export(make_student(kind, dropout=0.3), root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def read(folders):
    """What a fresh process reads out of the folders, by kind."""
    asked = json.dumps([PAIRS, list(map(str, folders.values()))])
    done = subprocess.run(
        [sys.executable, "-c", READER], input=asked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {kind: found[str(folder)] for kind, folder in folders.items()}


@pytest.mark.parametrize("library", ["sentence-transformers", "transformers", "onnxruntime"])
def test_other_libraries_give_the_student_s_scores(read, kind, library):
    ours = scores_of(make_student(kind))
    assert ours.std() > 0.05
    assert read[kind][library] == pytest.approx(ours.tolist(), abs=1e-4)


def test_the_card_s_three_examples_give_the_same_scores(read, kind):
    first, *others = read[kind]["example"]
    assert len(first) == 2
    for other in others:
        assert other == pytest.approx(first, abs=1e-4)


def test_sentence_transformers_cuts_where_the_student_s_longest_pair_ends(read, kind):
    special = 4 if kind == "roberta" else 3
    assert read[kind]["max_length"] == QUERY_TOKENS + PASSAGE_TOKENS + special


@pytest.mark.parametrize(("n_pairs", "longest"), [(1, 1), (1, 20), (2, 3), (13, 9), (64, 20)])
def test_onnx_takes_any_batch(folders, kind, n_pairs, longest):
    """Its axes are free; the exporter saw two pairs of three tokens or so."""
    session = onnxruntime.InferenceSession(folders[kind] / "onnx" / "model.onnx")
    texts = [make_texts(n_pairs, seed=seed, longest=most) for seed, most in ((7, 5), (8, longest))]
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    inputs = dict(tokenizer(*texts, padding=True, return_tensors="np"))
    assert {one.name for one in session.get_inputs()} == set(inputs)
    assert ("token_type_ids" in inputs) == (kind in ("bert", "electra", "bert-similarity"))
    assert all(len(set(map(str, one.shape))) == 2 for one in session.get_inputs())
    scores = session.run(["logits"], inputs)[0]
    assert scores.shape == (n_pairs, 1)
    ours = scores_of(make_student(kind), list(zip(*texts, strict=True)))
    assert scores[:, 0] == pytest.approx(ours, abs=1e-4)


def test_weights_past_a_file_s_limit_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_ONE_FILE_BYTES", 0)
    [found] = export(make_student(), tmp_path / "own")
    assert found.largest < TOLERANCE
    names = {path.name for path in (tmp_path / "own" / "onnx").iterdir()}
    assert names == {"model.onnx", "model.onnx.data"}


def test_quantised_scores_are_as_far_off_as_the_card_says(tmp_path):
    texts = Texts(what="text", source="here", find=lambda ids: dict(zip(ids, ids, strict=True)))
    frame = pd.DataFrame(PAIRS, columns=["query_id", "doc_id"])
    make_student().save_pretrained(tmp_path / "student")
    differences = export_student(
        tmp_path / "student", tmp_path / "own", query_tokens=QUERY_TOKENS,
        passage_tokens=PASSAGE_TOKENS, quantise=True,
        corpus=Corpus(candidates=frame, queries=texts, passages=texts),
    )
    session = onnxruntime.InferenceSession(tmp_path / "own" / "onnx" / "model_uint8.onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own")
    scores = []
    for start in (0, 1, 3, 7, 15, 31):  # the same batches, as activations are quantised by batch
        columns = map(list, zip(*PAIRS[start : 2 * start + 1], strict=True))
        inputs = tokenizer(*columns, padding=True, return_tensors="np")
        scores.append(session.run(None, dict(inputs))[0][:, 0])
    ours = scores_of(make_student())
    away = np.abs(np.concatenate(scores) - ours)
    exact, rough = differences
    assert exact.largest < TOLERANCE < 1e-3 < away.max() < 0.5 * ours.std()
    assert (rough.largest, rough.mean) == pytest.approx((away.max(), away.mean()), abs=1e-4)
    assert rough.spread == pytest.approx(ours.std(), abs=1e-4)
    card = (tmp_path / "own" / "README.md").read_text()
    assert f"on 60 pairs of texts, scores differ from PyTorch's by {rough.largest:.2g} at" in card


def test_onnx_scores_that_differ_are_an_error_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", 0)
    with pytest.raises(ValueError, match="expected ONNX scores within 0 of PyTorch's; .*bert"):
        export(make_student(), tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or an empty folder; given one that"):
        export(make_student(), tmp_path)


def test_an_exported_student_is_a_student_again(tmp_path):
    """Its folder was there before, but empty; and a killed export had left something beside it."""
    make_student("roberta").save_pretrained(tmp_path / "student")
    limits = {"query_tokens": QUERY_TOKENS, "passage_tokens": PASSAGE_TOKENS}
    for name in ("own", "own.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.partial" / "notes.txt").write_text("half")
    export(open_student(tmp_path / "student", **limits), tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "student"]
    assert not (tmp_path / "own" / "notes.txt").exists()
    again = open_student(tmp_path / "own")
    assert (again.query_tokens, again.passage_tokens) == (QUERY_TOKENS, PASSAGE_TOKENS)
    assert scores_of(again.eval()) == pytest.approx(scores_of(make_student("roberta")), abs=1e-6)
    theirs = TheirCrossEncoder(str(tmp_path / "own"), device="cpu")
    assert theirs.predict(PAIRS) == pytest.approx(scores_of(again), abs=1e-4)


def test_card_says_what_the_manifest_and_the_table_say(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_write_onnx", lambda *_: [])  # 3 s, and not what is tested
    run = tmp_path / "run"
    make_student().save_pretrained(run / "model")
    (run / "manifest.json").write_text(json.dumps(RECORD))
    table = pd.DataFrame({"measure": ["nDCG@10"], "system": ["own"], "mean": [0.71234567]})
    table.to_csv(tmp_path / "table.csv", index=False)
    limits = {"query_tokens": QUERY_TOKENS, "passage_tokens": PASSAGE_TOKENS}
    export_student(run, tmp_path / "fox", **limits, table=tmp_path / "table.csv")
    card = (tmp_path / "fox" / "README.md").read_text()
    for line in (
        "# fox", "| teacher | judgments | rank_zephyr |", "| loss | info_nce | ranknet |",
        "| collection | rdl/pydocs/train | rdl/pydocs/train |", "| add_relevant | False | False |",
        "- encoder: google/electra-base-discriminator", "- seed: 3", "- device: NVIDIA H100",
        "- torch: 2.13.0", "| nDCG@10 | own | 0.7123 |",
    ):
        assert line in card.splitlines(), line
    assert "sampler_options" not in card
    assert "rdl_core cuts queries to 5 tokens and passages to 20" in card
    assert "cut a pair to 28 tokens" in card


def test_card_says_what_is_not_known(folders):
    card = (folders["bert"] / "README.md").read_text()
    assert card.count("Not recorded: the student came without the manifest of its training.") == 2
    assert "None were given when this folder was written." in card
    assert re.search(r"`onnx/model.onnx`: on 63 pairs of random words, scores differ", card)
