"""Exported folders: other libraries load them unaided and give the student's scores."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import KINDS, make_student, make_texts
from transformers import AutoTokenizer

from rdl_core import export as export_module
from rdl_core.config import ExportConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.export import TOLERANCE, export, export_files
from rdl_core.tokens import TokenStore

PAIRS = list(zip(make_texts(60, seed=5, longest=5), make_texts(60, seed=6, longest=20), strict=True))
STAGES = [
    {
        "lists": {"collection": "rdl/pydocs/train", "teacher": teacher, "add_relevant": False},
        "training": {"loss": loss, "steps": 7, "sampler_options": {}},
    }
    for teacher, loss in (("judgments", "info_nce"), ("rank_zephyr", "ranknet"))
]
RECORD = {
    "config": {"encoder": "google/electra-base-discriminator", "seed": 3, "stages": STAGES},
    "device": "NVIDIA H100", "versions": {"torch": "2.13.0"},
}  # fmt: skip
# Runs the code of a card, asks what it has loaded for other pairs, and never imports rdl_core.
READER = """
import json, re, sys
pairs, folders = json.load(sys.stdin)
scores = {}
for folder in folders:
    [code] = re.findall(r"```python\\n(.*?)```", open(f"{folder}/README.md").read(), re.DOTALL)
    names = {"folder": folder}
    exec(code, names)
    theirs = names["CrossEncoder"](folder)
    inputs = names["AutoTokenizer"].from_pretrained(folder)(
        *map(list, zip(*pairs)), padding=True, return_tensors="pt")
    plain = names["AutoModelForSequenceClassification"].from_pretrained(folder)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    scores[folder] = {
        "example": [float(x) for x in names["scores"]],
        "example of transformers": [float(x) for x in plain(**names["inputs"]).logits[:, 0]],
        "max_length": theirs.max_seq_length,
        "sentence-transformers": theirs.predict(pairs, batch_size=7).tolist(),
        "transformers": plain(**inputs).logits[:, 0].tolist(),
        "onnxruntime": names["session"].run(["logits"], arrays)[0][:, 0].tolist(),
    }
assert "rdl_core" not in sys.modules
print(json.dumps(scores))
"""


def scores_of(student, pairs=PAIRS):
    stores = [TokenStore.of_texts(texts, student.tokenizer) for texts in zip(*pairs, strict=True)]
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        return student.score(*stores, rows, rows, token_budget=500).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An exported student of each kind."""
    root = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        export(make_student(kind, dropout=0.3), root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def read(folders):
    """What a fresh process reads out of the folders, by kind."""
    given = json.dumps([PAIRS, list(map(str, folders.values()))])
    scores = json.loads(subprocess.check_output([sys.executable, "-c", READER], input=given, text=True))
    return {kind: scores[str(folder)] for kind, folder in folders.items()}


def test_other_libraries_give_the_student_s_scores(read, kind):
    ours, theirs = scores_of(make_student(kind)), read[kind]
    assert ours.std() > 0.05
    for library in ("sentence-transformers", "transformers", "onnxruntime"):
        assert theirs[library] == pytest.approx(ours.tolist(), abs=1e-4), library
    assert theirs["example"] == pytest.approx(theirs["example of transformers"], abs=1e-4)
    assert theirs["max_length"] == 5 + 20 + (4 if kind == "roberta" else 3)  # cut where ours is


def test_eight_bit_scores_are_as_far_off_as_the_card_says_and_large_weights_lie_beside(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(export_module, "_ONE_FILE_BYTES", 0)
    student, own = make_student(), tmp_path / "own"
    student.model.get_input_embeddings().weight.data[3] *= 1000  # no text has it: scales are by token
    differences = export(student, own, quantise=True, pairs=PAIRS)
    names = {path.name for path in (own / "onnx").iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "model_int8.onnx"}
    session = onnxruntime.InferenceSession(own / differences["file"][1])
    inputs = AutoTokenizer.from_pretrained(own)(
        *map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="np"
    )
    ours = scores_of(make_student())
    away = np.abs(session.run(None, dict(inputs))[0][:, 0] - ours)
    (_, exact, *_), (_, largest, mean, spread) = differences.drop(columns="file").to_numpy()
    assert exact < TOLERANCE < 1e-3 < away.max() < 0.1 * ours.std()
    assert (largest, mean, spread) == pytest.approx((away.max(), away.mean(), ours.std()), abs=1e-4)
    card = (own / "README.md").read_text()
    assert f"| onnx/model_int8.onnx | 60 | {largest:.2g} | {mean:.2g} | {spread:.2g} |" in card


def test_onnx_scores_that_differ_are_an_error_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", 0)
    with pytest.raises(ValueError, match="expected ONNX scores within 0 of PyTorch's, .*bert"):
        export(make_student(), tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_an_exported_student_is_a_student_again(tmp_path):
    """Its folder was there before, but empty; and a killed export had left something beside it."""
    make_student("roberta").save_pretrained(tmp_path / "student")
    for name in ("own", "own.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.partial" / "notes.txt").write_text("half")
    student = CrossEncoder.from_pretrained(tmp_path / "student", query_tokens=5, passage_tokens=20)
    export(student, tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "student"]
    assert not (tmp_path / "own" / "notes.txt").exists()
    again = CrossEncoder.from_pretrained(tmp_path / "own", trained=True).eval()
    assert (again.query_tokens, again.passage_tokens) == (5, 20)
    assert scores_of(again) == pytest.approx(scores_of(make_student("roberta")), abs=1e-6)
    with pytest.raises(ValueError, match="own is not an empty folder: name a new one"):
        export(student, tmp_path / "own")


def test_the_card_has_what_files_say(tmp_path, folders):
    make_student().save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(RECORD))
    (tmp_path / "table.csv").write_text("measure,system,mean\nnDCG@10,own,0.71234567\n")
    lists = pd.DataFrame({"doc_id": [f"d{i}" for i in range(9)], "query_id": "7", "query": "w1"})
    lists = lists.assign(text=[text for _, text in PAIRS[:9]], score=1.0)
    lists.to_json(tmp_path / "lists.jsonl", orient="records", lines=True)
    config = ExportConfig(
        student=str(tmp_path / "run"), query_tokens=5, passage_tokens=20, out=str(tmp_path / "fox"),
        candidates=str(tmp_path / "lists.jsonl"), table=str(tmp_path / "table.csv"),
    )  # fmt: skip
    export_files(config)
    card = (tmp_path / "fox" / "README.md").read_text()
    for line in (
        "# fox", "| teacher | judgments | rank_zephyr |", "| loss | info_nce | ranknet |",
        "| collection | rdl/pydocs/train | rdl/pydocs/train |", "| add_relevant | False | False |",
        "- encoder: google/electra-base-discriminator", "- seed: 3", "- device: NVIDIA H100",
        "- torch: 2.13.0", "| nDCG@10 | own | 0.7123 |", "PyTorch, on pairs of texts",
        "rdl-core cuts queries to 5 tokens and passages to 20", "until the pair has 28 tokens",
        "| onnx/model.onnx | 9 |",
    ):  # fmt: skip
        assert line in card
    assert "sampler_options" not in card
    unknown = (folders["bert"] / "README.md").read_text()
    for line in (
        "Not recorded: the student came without the manifest of its training.", "None were known when",
        "on pairs of random words", "| onnx/model.onnx | 64 |",
    ):  # fmt: skip
        assert line in unknown
    for text, message in (("7 Q0 x 1", ".*'system'.* are in the col"), ("", "No columns to parse")):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(ValueError, match=f"csv is not of rdl evaluate --table: {message}"):
            export_files(config)
