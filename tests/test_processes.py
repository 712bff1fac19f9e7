"""Several processes on one student, shards of one run, and too little memory: all of it for real.

Processes are started as a person starts them, and talk over loopback (gloo).

Mutations seen to fail, one at a time:

- shards: a changed run merged; queries one shard after the other; every query's neighbour; more
  shards than queries.
- pieces: gradients that are means; a process that does not go along; weights saved in pieces.
- memory: an error of another kind taken for it; no floor; a re-ranking, or a step, that does not
  shrink.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from safetensors.torch import load_file
from test_commands import LIMITS, files, rdl, rerank_with  # noqa: F401 - fixtures

from rdl_core.data.formats import read_candidates
from rdl_core.devices import fitting

DISTILL = [
    "taught.parquet", *LIMITS, "--encoder", "student", "--collection", "beir", "--list-size", "4",
    "--queries-per-step", "2", "--steps", "40", "--precision", "float32", "--config", "exact.yaml",
]  # fmt: skip


# --- two processes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launch(files):  # noqa: F811
    """Start `rdl distill` in two processes, as torchrun and accelerate launch do."""
    (files / "exact.yaml").write_text("checkpoint_every: 2\ndropout: 0.0\n")

    def start(out, pieces=False):
        lists, *options = DISTILL
        words = ["-m", "rdl_core.cli", "distill", lists, str(out), *options]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        return subprocess.Popen(
            [*command, "--standalone", *words], cwd=files, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {
                "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
                "ACCELERATE_USE_FSDP": str(pieces).lower(),  # as accelerate launch --use_fsdp has it
            },
        )  # fmt: skip

    return start


def finish(launched):
    said, _ = launched.communicate(timeout=200)
    assert launched.returncode == 0, said


def wait_for_steps(folder, n):
    log, until = folder / "log.jsonl", time.monotonic() + 100
    while not log.exists() or log.read_text().count("\n") < n:
        assert time.monotonic() < until, "the training never came so far"
        time.sleep(0.02)


def workers(launched):
    """Process ids of the launcher's children."""
    children = f"/proc/{launched.pid}/task/{launched.pid}/children"
    with open(children) as file:
        return [int(one) for one in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_two_processes_train_as_one_and_survive_the_death_of_one(rdl, launch, tmp_path):  # noqa: F811
    """One worker is killed: the launch ends, and the same command goes on to the same bytes.

    While it runs, nobody else may work in its folder.
    """
    whole = launch(tmp_path / "whole")
    finish(whole)
    broken = launch(tmp_path / "broken")
    wait_for_steps(tmp_path / "broken", 6)
    lists, *options = DISTILL
    done = rdl("distill", lists, tmp_path / "broken", *options, code=2)
    assert "expected a folder that no other process works in" in done.stderr
    os.kill(workers(broken)[-1], signal.SIGKILL)
    killed = time.monotonic()
    broken.communicate(timeout=100)
    assert broken.returncode != 0
    assert time.monotonic() - killed < 60
    assert not (tmp_path / "broken" / "manifest.json").exists()
    finish(launch(tmp_path / "broken"))
    for name in ("model/model.safetensors", "log.jsonl"):
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("whole", "broken"))
        assert whole == resumed, name
    rdl("distill", lists, tmp_path / "one", *options)
    check_same_training(tmp_path / "one", tmp_path / "whole")
    for steps in (6, 14):  # in pieces, in pieces again, and then as whole students
        in_pieces = launch(tmp_path / "pieces", pieces=True)
        wait_for_steps(tmp_path / "pieces", steps)
        os.kill(workers(in_pieces)[0], signal.SIGKILL)
        in_pieces.communicate(timeout=100)
    finish(launch(tmp_path / "pieces"))
    check_same_training(tmp_path / "one", tmp_path / "pieces")


def check_same_training(one, two):
    losses = [
        [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


PIECES = """
import os, sys
from pathlib import Path
import pandas as pd, torch
from conftest import make_model, make_texts, make_tokenizer
from safetensors.torch import load_file
from rdl_core import distill as module
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import processes
from rdl_core.stage import StageConfig

lengths = [9, 1, 6]  # of the lists: the processes' shares differ, and one list has no preference
texts = {"query_id": make_texts(3, seed=1, longest=8), "doc_id": make_texts(9, seed=2, longest=30)}
stage = StageConfig(
    sampler="top", loss="ranknet", targets="teacher", list_size=9, queries_per_step=3, steps=3,
    learning_rate=1e-3, token_budget=64, held_tokens=0, dropout=0.1, gradient_checkpointing=True,
    train_word_embeddings=False, dev_every=2, precision="float32",
)
frame = pd.DataFrame(
    [(str(q), str(p), p + 1, (p * 5) % 9 + 1) for q, n in enumerate(lengths) for p in range(n)],
    columns=["query_id", "doc_id", "rank", "teacher_rank"],
)
lists = RankedLists.from_frame(frame, pd.Index(list("012")), pd.Index(list("012345678")))

def trained(architecture, pieces):
    os.environ["ACCELERATE_USE_FSDP"] = str(pieces).lower()
    tokenizer = make_tokenizer(architecture)
    queries, passages = (TokenStore.of_texts(each, tokenizer) for each in texts.values())
    torch.manual_seed(0)
    model = make_model(architecture)
    student = CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=40)
    folder = Path(sys.argv[1], f"{architecture} {pieces}")
    rows = torch.zeros(9, dtype=torch.int64), torch.arange(9)
    module.distill(
        student, lists, queries, passages, stage, seed=0, folder=folder,
        dev=torch.inference_mode()(
            lambda s: float(s.score(queries, passages, *rows, token_budget=64).diff()[0])
        ),
    )
    held = sum(getattr(w, "_local_tensor", w).numel() for w in student.parameters())
    shapes = {n: w.shape for n, w in load_file(folder / "model" / "model.safetensors").items()}
    log = pd.read_json(folder / "log.jsonl", lines=True)
    return log, shapes, held / student.model.num_parameters()

for architecture in ("bert", "electra", "modernbert"):
    (plain, whole, _), (pieces, saved, share) = (trained(architecture, p) for p in (False, True))
    assert saved == whole
    pd.testing.assert_frame_equal(plain, pieces, rtol=1e-4)
    assert abs(share - 0.5) < 0.1, share
processes().destroy_process_group()
"""


def test_pieces_are_half_a_student_and_train_like_whole_ones(tmp_path):
    """Uneven shares, a list without a preference, dropout, checkpoints of layers, a dev measure."""
    here = os.path.dirname(__file__)
    (tmp_path / "script.py").write_text(PIECES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, tmp_path / "script.py", tmp_path], text=True, timeout=300, check=False,
        capture_output=True, env=os.environ | {
            "PYTHONPATH": os.pathsep.join([here, *sys.path]), "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


# --- shards -------------------------------------------------------------------------------------


def rerank_shards(rdl, folder, *more):  # noqa: F811
    return [
        rerank_with(rdl, folder / f"{n}.run", "first.run", "--shard", f"{n}/2", *more) for n in (1, 2)
    ]


def test_shards_of_a_run_become_the_run(rdl, tmp_path):  # noqa: F811
    whole = rerank_with(rdl, tmp_path / "whole.run")
    shards = rerank_shards(rdl, tmp_path)
    assert all(0 < s.stat().st_size < whole.stat().st_size for s in shards)
    rdl("merge", tmp_path / "merged.run", *reversed(shards))
    merged, alone = (read_candidates(run) for run in (tmp_path / "merged.run", whole))
    # Other pairs share a batch, so that the last bits of a score may be others.
    pd.testing.assert_frame_equal(merged, alone, rtol=0, atol=1e-6)
    lines = (tmp_path / "merged.run").read_text().splitlines()
    assert sorted(lines) == sorted(line for s in shards for line in s.read_text().splitlines())
    assert not whole.with_name("whole.run.json").exists()


def test_runs_that_are_not_the_shards_of_one_are_refused(rdl, tmp_path):  # noqa: F811
    first, second = rerank_shards(rdl, tmp_path)
    out = tmp_path / "merged.run"
    done = rdl("merge", out, first, code=2)
    assert "expected all 2 shards once; given 1/2; missing 2/2: run --shard 2/2" in done.stderr
    done = rdl("merge", out, rerank_with(rdl, tmp_path / "plain.run"), code=2)
    assert "expected the run of a shard, with plain.run.json beside it" in done.stderr
    (tmp_path / "other").mkdir()
    _, other = rerank_shards(rdl, tmp_path / "other", "--tag", "another")
    done = rdl("merge", out, first, other, code=2)
    assert "given tag 'another' where" in done.stderr
    second.write_text(second.read_text().replace("rdl", "me", 1))
    done = rdl("merge", out, first, second, code=2)
    assert "2.run: expected the run that 2.run.json was written for" in done.stderr
    assert not out.exists()


def test_a_shard_that_cannot_be_is_refused(rdl, tmp_path):  # noqa: F811
    for shard in ("3/2", "0/2", "1/7"):
        with pytest.raises(AssertionError, match="a query for each of the N"):
            rerank_with(rdl, tmp_path / "x.run", "first.run", "--shard", shard)


# --- too little memory --------------------------------------------------------------------------

SCRIPT = """
import logging, resource, sys
from pathlib import Path
import pandas as pd, torch
from conftest import make_model, make_texts, make_tokenizer
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.distill import distill
from rdl_core.rerank import rerank
from rdl_core.stage import StageConfig

logging.basicConfig(level="WARNING")
tokenizer = make_tokenizer("bert")

def student():
    torch.manual_seed(0)
    model = make_model("bert", intermediate_size=4096)
    return CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=40)

n = 600
queries = TokenStore.of_texts(make_texts(1, seed=1, longest=8), tokenizer)
passages = TokenStore.of_texts([" ".join([x] * 9) for x in make_texts(n, seed=2, longest=30)], tokenizer)
ids = dict(query_ids=pd.Index(["q"]), doc_ids=pd.Index([str(i) for i in range(n)]))
frame = pd.DataFrame({"query_id": "q", "doc_id": ids["doc_ids"], "rank": range(1, n + 1)})
frame["teacher_rank"] = frame["rank"]

def trained(budget):
    stage = StageConfig(sampler="top", loss="ranknet", targets="teacher", list_size=n, dropout=0.0,
                        queries_per_step=1, steps=1, learning_rate=1e-3, token_budget=budget,
                        held_tokens=8 * budget)
    lists = RankedLists.from_frame(frame, ids["query_ids"], ids["doc_ids"])
    folder = Path(sys.argv[1], str(budget))
    distill(student(), lists, queries, passages, stage, seed=0, folder=folder)
    line = pd.read_json(folder / "log.jsonl", lines=True).iloc[0]
    return torch.tensor([line["loss"], line["gradient_norm"]])

def ranked(budget):
    scored = rerank(student(), frame, queries, passages, token_budget=budget, **ids)
    return torch.tensor(scored["score"].to_numpy())

work = {"rank": ranked, "train": trained}[sys.argv[2]]
enough = work(256)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]) * 2**20,) * 2)
print("largest difference", float((work(2**16) - enough).abs().max()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit of memory")
@pytest.mark.parametrize(("what", "extra_mb"), [("rank", 300), ("train", 400)])
def test_less_memory_makes_smaller_batches_and_the_same_result(what, extra_mb, tmp_path):
    """The process may really not have more memory: PyTorch's own allocations fail."""
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), what, str(extra_mb)], text=True, timeout=200,
        capture_output=True, check=False, env=os.environ | {
            "PYTHONPATH": os.pathsep.join([here, *sys.path]), "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory with 65536 tokens at once; going on with 32768" in done.stderr
    assert float(done.stdout.split()[-1]) < 1e-6


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory: you tried", "could not create a primitive"]
)
def test_what_fits_nowhere_is_refused_and_other_errors_pass(words):
    asked = []

    def out_of_memory(token_budget):
        asked.append(token_budget)
        raise RuntimeError(words)

    with pytest.raises(MemoryError, match="expected memory for 256 tokens at once.* free some"):
        fitting(out_of_memory, 1024)
    assert asked == [1024, 512, 256]

    def broken(token_budget):
        asked.append(token_budget)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting(broken, 4096)
    assert asked[3:] == [4096]
