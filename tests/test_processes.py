"""Several processes on one student, over loopback (gloo), and too little memory: all of it for real."""

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from common import child_environment, make_student, make_texts, make_tokenizer, read_log
from safetensors.torch import load_file

from rdl_core.config import StageConfig
from rdl_core.devices import fitting
from rdl_core.distill import distill
from rdl_core.lists import RankedLists
from rdl_core.rerank import rerank
from rdl_core.tokens import TokenCorpus

# Three lists a step, so that the processes' shares differ.
DISTILL = (
    "distill taught.parquet --encoder student --collection beir --list-size 4 --queries-per-step 3 "
    "--steps 40 --precision float32 --dropout 0 --checkpoint-every 2"
).split()


def launch(files, out):
    """Start `rdl distill` in two processes, as torchrun and accelerate launch do."""
    command = "-m torch.distributed.run --nproc-per-node 2 --standalone -m rdl_tools.cli".split()
    return subprocess.Popen(
        [sys.executable, *command, *DISTILL, str(out)], cwd=files, start_new_session=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=child_environment(),
    )  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_two_processes_train_as_one_and_survive_the_death_of_one(rdl, files, tmp_path):
    """The launch ends, and the same command goes on where it was; nobody else works meanwhile."""
    one, broken = tmp_path / "one", tmp_path / "broken"
    first, log, until = launch(files, broken), broken / "log.jsonl", time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < 6:
        assert time.monotonic() < until, "the training never came so far"
        time.sleep(0.02)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text()
    workers = [int(worker) for worker in children.split()]
    for worker in workers:  # they would be done before anybody else has come
        os.kill(worker, signal.SIGSTOP)
    assert "another process works in this folder" in rdl(*DISTILL, broken, code=2).stderr
    for worker in workers:
        os.kill(worker, signal.SIGKILL if worker == workers[-1] else signal.SIGCONT)
    first.communicate(timeout=100)
    assert first.returncode != 0
    assert not (broken / "manifest.json").exists()
    again = launch(files, broken)
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    rdl(*DISTILL, one)
    for a, b in zip(read_log(one), read_log(broken), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, broken))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def _with_less_memory(folder, what, extra_mb):
    """Work with batches that fit; then with larger ones, and no more memory than so much."""
    torch.set_num_threads(1)
    logging.basicConfig(filename=folder / "messages", level="WARNING")
    n, ranks = 600, range(1, 601)
    texts = [" ".join([x] * 9) for x in make_texts(n, seed=2, longest=30)]
    passages = pd.DataFrame({"doc_id": map(str, ranks), "text": texts})
    queries = pd.DataFrame({"query_id": ["q"], "query": make_texts(1, seed=1, longest=8)})
    corpus = TokenCorpus.of(queries, passages, make_tokenizer("bert"))
    frame = passages[["doc_id"]].assign(query_id="q", rank=ranks, teacher_rank=ranks)

    def work(budget):
        student = make_student(intermediate_size=4096)
        student.passage_tokens = 40
        if what == "rank":
            return rerank(student, frame, corpus, token_budget=budget)["score"].tolist()
        own = {"token_budget": budget, "held_tokens": 8 * budget}
        stage = StageConfig(list_size=n, dropout=0, queries_per_step=1, steps=1, **own)
        out = folder / str(budget)
        distill(student, RankedLists.from_frame(frame, corpus), stage, seed=0, folder=out)
        return [read_log(out)[0][key] for key in ("loss", "gradient_norm")]

    expected = work(256)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra_mb * 2**20,) * 2)
    (folder / "scores").write_text(repr((expected, work(2**16))))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit of memory")
@pytest.mark.parametrize(("what", "extra_mb"), [("rank", 300), ("train", 400)])
def test_less_memory_makes_smaller_batches_and_the_same_result(server, what, extra_mb, tmp_path):
    """The process may really not have more memory: PyTorch's own allocations fail."""
    process = server.Process(target=_with_less_memory, args=(tmp_path, what, extra_mb))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    expected, scores = eval((tmp_path / "scores").read_text())
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-6)
    messages = (tmp_path / "messages").read_text()
    assert "out of memory with 65536 tokens at once; going on with 32768" in messages


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory: you tried", "could not create a primitive"]
)
def test_what_fits_nowhere_is_refused_and_other_errors_pass(words):
    budgets = []

    def fails(token_budget):
        budgets.append(token_budget)
        raise RuntimeError(words if token_budget <= 1024 else "shapes do not match")

    with pytest.raises(MemoryError, match="lacks the memory for 256 tokens at once .* free some"):
        fitting(fails, 1024)
    with pytest.raises(RuntimeError, match="shapes"):
        fitting(fails, 4096)
    assert budgets == [1024, 512, 256, 4096]
