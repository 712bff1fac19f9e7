"""Exported folders: other libraries load them unaided and give the student's scores."""

import base64
import json
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from common import KINDS, make_student, make_texts
from huggingface_hub import ModelCard, constants
from transformers import AutoTokenizer

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.tokens import TokenStore
from rdl_tools import export as export_module
from rdl_tools.config import ExportConfig
from rdl_tools.export import TOLERANCE, export, export_files

PAIRS = list(zip(make_texts(60, seed=5, longest=5), make_texts(60, seed=6, longest=20), strict=True))
STAGES = [
    {
        "lists": {"collection": "rdl/pydocs/train", "teacher": teacher, "add_relevant": False},
        "training": {"loss": loss, "steps": 7, "sampler_options": {}},
    }
    for teacher, loss in (("judgments", "info_nce"), ("rank_zephyr", "ranknet"))
]
STAGES[1]["lists"]["collection"] = "msmarco-passage/train"
RECORD = {
    "config": {"encoder": "all-MiniLM-L6-v2", "seed": 3, "stages": STAGES},
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
    assert exact < TOLERANCE < 1e-3 < away.max() < 0.2 * ours.std()
    assert (largest, mean, spread) == pytest.approx((away.max(), away.mean(), ours.std()), abs=1e-4)
    card = " ".join((own / "README.md").read_text().split())
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
    (tmp_path / "table.csv").write_text("measure,system,mean\nnDCG@10,own,0.71234\nRR(rel=2),own,1\n")
    lists = pd.DataFrame({"doc_id": [f"d{i}" for i in range(9)], "query_id": "7", "query": "w1"})
    lists = lists.assign(text=[text for _, text in PAIRS[:9]], score=1.0)
    lists.to_json(tmp_path / "lists.jsonl", orient="records", lines=True)
    config = ExportConfig(
        student=str(tmp_path / "run"), query_tokens=5, passage_tokens=20, out=str(tmp_path / "fox"),
        candidates=str(tmp_path / "lists.jsonl"), table=str(tmp_path / "table.csv"),
        licence="Not for sale!",
    )  # fmt: skip
    export_files(config)
    card = " ".join((tmp_path / "fox" / "README.md").read_text().split())
    for line in (
        "# fox", "| teacher | judgments | rank_zephyr |", "| loss | info_nce | ranknet |",
        "| collection | rdl/pydocs/train | msmarco-passage/train |", "| add_relevant | False | False |",
        "- encoder: all-MiniLM-L6-v2", "- seed: 3", "- device: NVIDIA H100",
        "- torch: 2.13.0", "| nDCG@10 | own | 0.7123 |", "PyTorch, on pairs of texts",
        "rdl-core cuts queries to 5 tokens and passages to 20", "until the pair has 28 tokens",
        "| onnx/model.onnx | 9 |",
    ):  # fmt: skip
        assert line in card
    assert "sampler_options" not in card
    tags = ["cross-encoder", "reranker", "distillation"]
    plain = {"library_name": "sentence-transformers", "pipeline_tag": "text-ranking", "tags": tags}
    assert ModelCard.load(tmp_path / "fox" / "README.md").data.to_dict() == plain | {
        "base_model": "sentence-transformers/all-MiniLM-L6-v2", "metrics": ["ndcg_at_10", "rr_rel_2"],
        "datasets": ["irds/msmarco-passage_train"], "license": "other", "license_name": "not-for-sale",
    }  # fmt: skip
    for encoder in (str(tmp_path), "../encoder", ""):  # are none of the hub's
        text = export_module._metadata({"config": {"encoder": encoder}}, [], "MIT")
        assert ModelCard(f"---\n{text}\n---\n").data.to_dict() == plain | {"license": "mit"}
    unknown = " ".join((folders["bert"] / "README.md").read_text().split())
    for line in (
        "Not recorded: the student came without the manifest of its training.", "None were known when",
        "on pairs of random words", "| onnx/model.onnx | 64 |",
    ):  # fmt: skip
        assert line in unknown
    for text, message in (("7 Q0 x 1", ".*'system'.* are in the col"), ("", "No columns to parse")):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(ValueError, match=f"csv is not of rdl evaluate --table: {message}"):
            export_files(config)


class Hub(BaseHTTPRequestHandler):
    private, files = {}, {}  # of a hub that knows as much as a push needs, and one token

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        first, *operations = map(json.loads, body.splitlines())
        url, status = f"http://{self.headers['Host']}/me/fox", 200
        answer = {"url": url, "commitUrl": f"{url}/commit/1", "commitOid": "1"}
        if self.headers["Authorization"] != "Bearer good":
            status = 401
        elif self.path == "/api/repos/create":
            status = 409 if "fox" in self.private else 200
            self.private.setdefault(first["name"], first["visibility"])
        elif "/preupload/" in self.path:
            more = {"uploadMode": "regular", "shouldIgnore": False}
            answer["files"] = [file | more for file in first["files"]]
        for file in (operation["value"] for operation in operations):
            self.files[file["path"]] = base64.b64decode(file["content"])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


def test_a_push_uploads_every_file_or_says_how_to_do_so_later(tmp_path, monkeypatch, rdl):
    make_student().save_pretrained(tmp_path / "student")
    table, onnx = export(make_student(), tmp_path / "once"), tmp_path / "once" / "onnx"
    copied = lambda folder, *_: shutil.copytree(onnx, folder / "onnx") and table  # noqa: E731
    monkeypatch.setattr(export_module, "_write_onnx", copied)  # takes seconds, and is not tested here
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        for n, (name, endpoint, token, told) in enumerate((
            ("me/fox", root, "good", ""), ("fox", root, "good", ""), ("fox", root, "", "no token"),
            ("fox", root, "bad", "401 Unauthorized"),
            ("fox", "http://127.0.0.1:1", "good", "Connection refused"),
        )):  # fmt: skip
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            monkeypatch.setenv("HF_TOKEN", token)
            out, code = tmp_path / str(n), 2 if told else 0
            done = rdl("export", tmp_path / "student", out, "--push", name, code=code)
            files = {str(x.relative_to(out)): x.read_bytes() for x in out.rglob("*") if x.is_file()}
            assert files.keys() > {"README.md", "model.safetensors", "onnx/model.onnx"}
            uploaded, later = Hub.files == files, f"hf upload {name} {out} . --private" in done.output
            assert (told in done.output, uploaded, later) == (True, not told, bool(told))
        server.shutdown()
    assert Hub.private == {"fox": "private"}
