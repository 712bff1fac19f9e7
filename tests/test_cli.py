"""The command line: made from the configurations, quick to help, one line for what a user can mend."""

import json
import os
import re
import subprocess
import sys

import click
import pytest
from common import child_environment
from safetensors import SafetensorError

from rdl_core import config as c
from rdl_core.data.formats import read_run
from rdl_tools import cli
from rdl_tools import config as t

COMMANDS = {
    "distill": (t.DistillConfig, c.StageConfig), "rerank": (t.RerankConfig,), "merge": (), "fetch": (),
    "teach": (t.TeachConfig, *c.BACKENDS.values()), "evaluate": (t.EvaluateConfig,),
    "export": (t.ExportConfig,),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_a_configuration_is_an_option_with_its_help(name):
    command = cli.app.commands[name]
    fields = {key for kind in COMMANDS[name] for key in kind.__pydantic_fields__}
    assert fields - {param.name for param in command.params} <= {"training"}  # whose fields are options
    helps = [param.help for param in command.params if isinstance(param, click.Option)]
    assert all(text and "`" not in text for text in [command.help, *helps])


def test_help_shows_kinds_choices_and_defaults_and_words_that_are_none_are_named(rdl):
    text = " ".join(rdl("distill", "--help").output.split())
    for expected in (
        "[OPTIONS] LISTS OUT", "--encoder TEXT Where the weights", "--steps INTEGER", "[default: 940]",
        "--targets [teacher|scores|judgments]", "--loss-options NAME=VALUE",
        "--learning-rate NUMBER", "--train-word-embeddings / --no-train-word-embeddings",
    ):  # fmt: skip
        assert expected in text
    assert "expected name=value, got 'a'" in rdl(*DISTILL.split(), "--loss-options", "a", code=2).stderr


WORDS = {
    "distill x out --encoder e --loss adr_mse --loss-options temperature=0.5 --steps 4 "
    "--loss-options discount=none --no-train-word-embeddings --learning-rate 1e-3": t.DistillConfig(
        lists="x", encoder="e", training={
            "loss": "adr_mse", "loss_options": {"temperature": 0.5, "discount": "none"}, "steps": "4",
            "train_word_embeddings": False, "learning_rate": "1e-3",
        },
    ),
    "evaluate q a b --measures RR@10 --measures AP":
        t.EvaluateConfig(qrels="q", runs=("a", "b"), measures=("RR@10", "AP")),
    "teach x out --model m --options top_p=0.5":
        t.TeachConfig(candidates="x", backend=c.EndpointConfig(model="m", options={"top_p": 0.5})),
    "teach x out --model m --backend local_llm --depth 5":
        t.TeachConfig(candidates="x", backend=c.LocalConfig(model="m"), depth=5),
    "teach x out --model m --backend replay":
        t.TeachConfig(candidates="x", backend=c.ReplayConfig(model="m")),
}  # fmt: skip
WORK = {
    "distill": "rdl_tools.distill.distill_files", "teach": "rdl_tools.teach.teach",
    "evaluate": "rdl_tools.evaluate.evaluate_files",
}  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), WORDS.items())
def test_words_become_the_configuration(rdl, monkeypatch, words, expected):
    """Of backends that have the same fields the first was taken once, and a server was asked."""
    seen = []
    work = WORK[words.split()[0]]
    monkeypatch.setattr(work, lambda config, *out: seen.append(config) or {"totals": {}})
    rdl(*words.split())
    assert seen == [expected]


_HELP = """
import sys, time
from click.testing import CliRunner
from rdl_tools.cli import app
for name in ["", *app.list_commands(None)]:
    assert "Usage: rdl" in CliRunner().invoke(app, [*name.split(), "--help"]).output, name
print("torch" in sys.modules or "pandas" in sys.modules, time.process_time())
"""


def test_all_helps_are_quick_and_import_no_torch():
    words = [sys.executable, "-c", _HELP]
    runs = [subprocess.check_output(words, text=True, env=child_environment()) for _ in range(2)]
    heavy, cpu_s = zip(*map(str.split, runs), strict=True)  # the first may have to compile
    assert heavy == ("False", "False")
    assert min(map(float, cpu_s)) < 1.5


def test_commands_work_on_files_and_options_come_before_the_yaml(rdl, files, tmp_path):
    settings = "loss: adr_mse\nlearning_rate: 1e-3\nqueries_per_step: 2\nlist_size: 4\n"
    (tmp_path / "stage.yaml").write_text(settings)
    words = ("--encoder", "student", "--collection", "beir", "--config", tmp_path / "stage.yaml")
    done = rdl("distill", "first.run", tmp_path / "own", *words, "--loss", "listnet")
    assert done.stdout == f"student in {tmp_path}/own/model\n"
    config = json.loads((tmp_path / "own" / "config.json").read_text())["config"]
    stage, names = config["stages"][0]["training"], ("loss", "learning_rate", "steps", "list_size")
    assert [stage[x] for x in names] == ["listnet", 1e-3, 9, 4]
    shards = [tmp_path / f"{n}.run" for n in (1, 2)]
    for n, shard in enumerate(shards, start=1):
        words = ("--collection", "beir", "--shard", f"{n}/2", "--tag", "me")
        rdl("rerank", tmp_path / "own", "first.run", shard, *words)
    assert "merged.run: 6 queries" in rdl("merge", tmp_path / "merged.run", *shards).stdout
    assert (tmp_path / "merged.run").read_text().splitlines()[0].endswith(" me")
    assert len(read_run(tmp_path / "merged.run")) == len(read_run(files / "first.run"))
    assert "nDCG@10" in rdl("evaluate", "qrels.txt", tmp_path / "merged.run").stdout


RERANK = "rerank student first.run out.run"
DISTILL = "distill first.run out --collection beir --encoder student"
REFUSALS = {
    "rerank student none.run out.run": r"none\.run", RERANK: r"first.run has no query .*--collection",
    f"{RERANK} --collection biere": "'biere'",
    f"{RERANK} --collection beir --query-tokens 60": "at most 64 tokens",
    "rerank encoder first.run out.run --collection beir": "encoder: expected a trained",
    "evaluate qrels.txt first.run --measures nDGC@10": "'nDGC@10'",
    f"{DISTILL} --config qrels.txt": "qrels.txt: expected lines of name: value",
    f"{DISTILL} --config none.yaml": "No such file: none.yaml",
    f"{DISTILL} --loss rank": "loss: expected one of adr_mse, ",
    f"{DISTILL} --query-tokens 0": "the command line does not fit:\n  query_tokens: .*to 1, got '0'",
    f"{DISTILL} --targets judgments": "no passage is judged 1 or more",
    "rerank student first.run beir --collection beir": "beir is a folder: name the file",
    DISTILL.replace("out", "qrels.txt"): "qrels.txt is a file: name a folder",
    "fetch x": "'x'",
    "teach first.run out --model x --mode free":
        "backend endpoint does not fit:\n  mode: unknown key",
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSALS.items())
def test_what_can_be_mended_is_one_message_and_exit_code_2(rdl, files, words, says):
    done = rdl(*words.split(), code=2)
    assert (done.stdout, done.stderr[:7]) == ("", "error: ")
    assert re.search(says, done.stderr), done.stderr
    assert not (files / "out.run").exists()
    assert not (files / "out").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_and_a_bug_is_not_called_the_users(rdl, capsys):
    done = rdl("evaluate", "qrels.txt", "first.run", "--table", "/dev/full", code=2)
    assert "No space left on device: the disk is full: free some space" in done.stderr
    with pytest.raises(click.exceptions.Exit), cli.refusals():
        raise SafetensorError("I/O error (os error 28)")
    assert "the disk is full" in capsys.readouterr().err
    with pytest.raises(TypeError), cli.refusals():
        raise TypeError
