"""The command line: made from the configurations, quick to help, one line for what a user can mend."""

import errno
import json
import os
import re
import subprocess
import sys
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from conftest import child_environment, read_log
from pydantic import Field
from safetensors import SafetensorError

from rdl_core import cli
from rdl_core import config as c
from rdl_core.data.formats import read_run

# --- from a configuration to a command ------------------------------------------------------------


@c.config
class Engine:
    """One of two."""

    name: str
    """What it is called."""
    power: int = 3
    """How strong, as in `rdl_core.config.POWERS`."""


@c.config
class Horse:
    """The other, which has a name, too."""

    name: str
    """What it is called."""
    hay: float = 1.0
    """Kilograms."""


@c.config
class Limits:
    """Inherited."""

    most: Annotated[int, Field(ge=1)] | None = None
    """At most so many."""


@c.config
class Cart(Limits):
    """All kinds of fields."""

    load: str
    """What is on it."""
    stops: tuple[str, ...] = ("home",)
    """Where it stops."""
    kind: Literal["flat", "deep"] = "flat"
    """Which cart."""
    roof: bool = True
    """With a roof."""
    red: bool = False
    """Painted."""
    more: dict[str, object] = Field(default_factory=dict)
    """Anything."""
    training: dict[str, object] = Field(default_factory=dict)
    """Fields of Horse or none."""
    pulled_by: Engine | Horse
    """Who pulls."""


@pytest.fixture(scope="module")
def run():
    seen = []

    @cli.command("load", choices={"pulled_by": {"engine": Engine, "horse": Horse}})
    def ride(config: Cart, far: Annotated[str, "--km", "How far."] = "1") -> str:
        """Ride a cart."""
        seen.append((config, far))
        return "there"

    def run(*words, code=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "log_plainly", lambda: None)
            done = CliRunner().invoke(ride, words)
        assert done.exit_code == code, done.output
        return seen[-1] if code == 0 and "--help" not in words else done.output

    return run


def test_options_are_the_fields_and_their_values(run):
    """Of two configurations with the same fields, the one that was chosen: teachers were mixed up."""
    assert run("hay", "--name", "x") == (Cart(load="hay", pulled_by=Engine(name="x")), "1")
    assert run("x", "--name", "x", "--pulled-by", "horse")[0].pulled_by == Horse(name="x")
    words = "--name x --most 4 --stops a --stops b --kind deep --no-roof --red --km 7 --pulled-by horse --hay 1.5"
    more = ("--more", "a=1", "--more", "b=[1, true]", "--more", "c=x=y")
    cart = Cart(
        load="x", most=4, stops=("a", "b"), kind="deep", roof=False, red=True,
        more={"a": 1, "b": [1, True], "c": "x=y"}, pulled_by=Horse(name="x", hay=1.5),
    )  # fmt: skip
    assert run("x", *words.split(), *more) == (cart, "7")


def test_help_is_that_of_the_fields(run):
    text = " ".join(run("--help").split())
    for expected in (
        "Ride a cart.", "--most INTEGER At most so many.", "--stops TEXT Where it stops. [default: home]",
        "--kind [flat|deep] Which cart. [default: flat]", "--roof / --no-roof With a roof.", "--red Painted.",
        "--more NAME=VALUE Anything.", "--km TEXT How far. [default: 1]", "--hay NUMBER Kilograms. [default: 1.0]",
        "--pulled-by [engine|horse] Who pulls.", "How strong, as in POWERS. [default: 3]",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x", "--hay", "2"], "error: hay: an option of pulled_by horse, but pulled_by is engine: leave it "
                              "out, or choose horse"),
        (["x", "--most", "0"], "error: the command line does not fit:\n  most: .*equal to 1, got '0'"),
        (["x", "--pulled-by", "horse", "--hay", "much"], "hay: .*number.*, got 'much'"),
        (["x", "--kind", "x"], "'--kind'.*'flat', 'deep'"), ([], "Missing argument 'LOAD'"),
        (["x", "--more", "a"], "expected name=value, got 'a'"), (["x", "--mots", "4"], "No such option '--mots'"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit_are_named(run, words, says):
    assert re.search(says, run("--name", "x", *words, code=2))


COMMANDS = {
    "distill": (c.DistillConfig, c.StageConfig), "rerank": (c.RerankConfig,), "evaluate": (c.EvaluateConfig,),
    "export": (c.ExportConfig,), "teach": (c.TeachConfig, *c.BACKENDS.values()), "merge": (), "fetch": (),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_a_configuration_is_an_option_with_its_help(name):
    command = cli.app.get_command(click.Context(cli.app), name)
    params = {param.name: param for param in command.params}
    fields = {key: info for kind in COMMANDS[name] for key, info in cli._fields(kind).items()}
    assert fields.keys() - params.keys() <= {"training"}  # whose fields stand beside it
    helps = [param.help for param in command.params if isinstance(param, click.Option)]
    assert all(text and "`" not in text for text in helps)
    assert command.help


_HELP = """
import resource, sys
from rdl_core.cli import app
try:
    app(sys.argv[1:] + ["--help"], "rdl")
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print([x for x in ("torch", "pandas", "transformers") if x in sys.modules], usage.ru_utime + usage.ru_stime)
"""


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_quick_and_imports_no_torch(name):
    words = [sys.executable, "-c", _HELP, *name.split()]
    text = subprocess.check_output(words, text=True, env=child_environment())
    assert "Usage: rdl" in text
    loaded, cpu_s = text.splitlines()[-1].rsplit(" ", 1)
    assert (loaded, float(cpu_s) < 1.5) == ("[]", True), text.splitlines()[-1]


# --- commands -------------------------------------------------------------------------------------


def test_distill_and_rerank_from_files_and_options_before_the_yaml(rdl, files, tmp_path):
    settings = "loss: adr_mse\nlearning_rate: 1e-3\nqueries_per_step: 2\nlist_size: 4\n"
    (tmp_path / "stage.yaml").write_text(settings)
    words = ("--encoder", "student", "--collection", "beir", "--config", tmp_path / "stage.yaml")
    done = rdl("distill", "first.run", tmp_path / "own", *words, "--loss", "listnet")
    assert done.stdout == f"student in {tmp_path}/own/model\n"
    config = json.loads((tmp_path / "own" / "config.json").read_text())["config"]["stages"][0]["training"]
    assert [config[x] for x in ("loss", "learning_rate", "steps", "list_size")] == ["listnet", 1e-3, 9, 4]
    assert len(read_log(tmp_path / "own")) == 9
    rdl("rerank", tmp_path / "own", "first.run", tmp_path / "own.run", "--collection", "beir", "--tag", "me")
    assert (tmp_path / "own.run").read_text().splitlines()[0].endswith(" me")
    assert len(read_run(tmp_path / "own.run")) == len(read_run(files / "first.run"))
    shards = [tmp_path / f"{n}.run" for n in (1, 2)]
    for n, shard in enumerate(shards, start=1):
        rdl("rerank", "student", "first.run", shard, "--collection", "beir", "--shard", f"{n}/2")
    assert "merged.run: 6 queries" in rdl("merge", tmp_path / "merged.run", *shards).stdout


def test_evaluate_prints_a_table(rdl):
    done = rdl("evaluate", "qrels.txt", "first.run", "--measures", "nDCG@10", "--measures", "RR(rel=2)")
    assert "nDCG@10" in done.stdout
    assert "RR(rel=2)" in done.stdout


RERANK = ("rerank", "student")
TO = ("out.run", "--collection", "beir")
DISTILL = ("distill", "first.run", "out", "--collection", "beir", "--encoder", "student")
REFUSALS = {
    "no such file": ([*RERANK, "none.run", *TO], r"none\.run"),
    "ids alone": ([*RERANK, "first.run", "out.run"], r"first.run has no query texts.*\(--collection\)"),
    "no such collection": ([*RERANK, "first.run", "out.run", "--collection", "biere"], "'biere'"),
    "other texts": ([*RERANK, "first.run", "out.run", "--collection", "rdl/pydocs/test"], "such as 'q0'"),
    "no head": (["rerank", "encoder", "first.run", *TO], "encoder: expected a trained"),
    "too long": ([*RERANK, "first.run", *TO, "--query-tokens", "60"], "at most 64 tokens"),
    "no such measure": (["evaluate", "qrels.txt", "first.run", "--measures", "nDGC@10"], "'nDGC@10'"),
    "no such baseline": (["evaluate", "qrels.txt", "first.run", "--baseline", "bm25"], "'bm25'"),
    "no YAML": ([*DISTILL, "--config", "qrels.txt"], "qrels.txt: expected lines of name: value"),
    "no such YAML": ([*DISTILL, "--config", "none.yaml"], "No such file: none.yaml"),
    "no such loss": ([*DISTILL, "--loss", "rank"], "loss: expected one of adr_mse, "),
    "a full folder": (["export", "student", "beir"], "beir"), "no such group": (["fetch", "x"], "'x'"),
    "another backend's option": (
        ["teach", "first.run", "out", "--model", "x", "--mode", "free"],
        "mode: an option of backend local_llm, but backend is endpoint: .*choose local_llm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_can_be_mended_is_one_message_and_exit_code_2(rdl, files, words, says):
    done = rdl(*words, code=2)
    assert isinstance(done.exception, SystemExit)
    assert (done.stdout, done.stderr[:7]) == ("", "error: ")
    assert re.search(says, done.stderr), done.stderr
    assert not (files / "out.run").exists()
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left", "x.run"), SafetensorError("I/O error (os error 28)")]
)
def test_a_full_disk_is_told(error, capsys):
    with pytest.raises(click.exceptions.Exit) as left, cli.refusals():
        raise error
    assert left.value.exit_code == 2
    assert re.search("(x.run|a file) was not written, the disk is full .* free some space", capsys.readouterr().err)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_disk_that_is_full_is_told_by_the_command(files):
    words = [sys.executable, "-m", "rdl_core.cli", "evaluate", "qrels.txt", "first.run", "--table", "/dev/full"]
    done = subprocess.run(words, cwd=files, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_bugs_are_not_called_the_users():
    with pytest.raises(TypeError), cli.refusals():
        raise TypeError
