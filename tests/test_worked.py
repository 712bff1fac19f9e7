"""The worked example and the pictures: what they show is what the library computes.

Mutations seen to fail: pairs the wrong way round; the rule by the teacher's lead alone; half the
learning rate; draws with replacement for the exact shares; what stayed in the top told as what left
it; seeds' runs under one name; ranks below 10 for the top 10.
"""

import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_stage

from rdl_core.data.formats import read_candidates
from rdl_core.losses import ranknet, targets_from_ranks
from rdl_study import agreement, files, inclusion, movers, pictures, worked
from rdl_study.grid import Part, effectiveness
from rdl_study.profile import load_profile
from rdl_study.tables import compare


@pytest.fixture(scope="module")
def part(tmp_path_factory, encoder_folder):
    """The effectiveness page's systems, with a tiny student, on eight queries."""
    mini = load_profile("mini")

    def small(stage):
        own = {"teacher_encoder": encoder_folder}
        return small_stage(stage, steps=4, lists=own, learning_rate=0.01)

    test = replace(mini.test, n_queries=8, depth=6, teacher_encoder=encoder_folder)
    profile = replace(
        mini, encoder=encoder_folder, stage1=small(mini.stage1), stage2=small(mini.stage2),
        test=test, seeds=(0, 1), precision="float32",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield effectiveness(profile, ["bm25"])["bm25"]


@pytest.fixture(scope="module")
def results(part):
    return compare(part)


def test_the_pairs_are_ranknet_and_their_pushes_its_gradient():
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.1]], requires_grad=True)
    targets = targets_from_ranks(torch.tensor([[2, 1, 4, 3]]))
    loss = ranknet(scores, targets)
    loss.backward()
    pairs = worked.pairs(scores, targets)
    assert len(pairs) == 6
    assert pairs["loss"].mean() == pytest.approx(loss.item(), abs=1e-6)
    assert pairs["loss"].is_monotonic_decreasing
    push = torch.zeros(4)
    for row in pairs.itertuples():
        push[row.above] += row.push / len(pairs)
        push[row.below] -= row.push / len(pairs)
    torch.testing.assert_close(-scores.grad[0], push)


def test_the_rule_takes_what_stage_2_improves_most_where_the_teacher_knows_better(results):
    told = pd.DataFrame(0.0, index=results.values.index, columns=results.values.columns)
    taught, first, before = worked.pick(results).teacher, "first stage", "student after stage 1"
    a, b, c, d = told.index[:4]
    told.loc[a, "student"] = 0.9  # the teacher does not know better
    told.loc[b, [taught, "student"]] = 0.5
    told.loc[c, [taught, first, "student"]] = 0.6  # nor here, than the first stage
    told.loc[d, [before, taught]] = 0.7  # nothing is gained
    assert worked.pick(replace(results, values=told)).query_id == b
    told.loc[c, taught] = 0.7
    assert worked.pick(replace(results, values=told)).query_id == c
    told[taught] = 0.0
    assert worked.pick(replace(results, values=told)).query_id == a
    assert worked.pick(replace(results, values=told), d).query_id == d
    with pytest.raises(ValueError, match="query_id: expected one of the 8 test queries"):
        worked.pick(results, "nobody's")


def test_an_example_has_the_orders_of_the_runs(results):
    example = worked.pick(results)
    for system in example.ranks:
        run = pd.read_parquet(results.rankings[system][0].folder / "run.parquet")
        own = run[run["query_id"] == example.query_id].sort_values("score", ascending=False)
        assert example.ranks[system].sort_values().index.tolist() == own["doc_id"].tolist()
    assert example.ranks["first stage"].tolist() == list(range(1, len(example.ranks) + 1))


def test_the_step_is_the_first_of_the_study(results):
    step = worked.first_step(results.profile, worked.pick(results))
    assert step.loss == pytest.approx(step.logged, abs=1e-6)
    assert step.losses.iloc[0, 0] == pytest.approx(step.logged, abs=1e-6)
    assert step.losses.iloc[0, 1] != step.losses.iloc[0, 0]
    assert step.learning_rate == pytest.approx(0.01 / 4)


@pytest.mark.parametrize(
    "name", ["top", "random", "log_random", "stratified", "hard", "single_relevant", "denoised"]
)
@pytest.mark.parametrize(("depth", "list_size"), [(8, 4), (6, 2), (5, 5)])
def test_exact_shares_are_those_drawn(name, depth, list_size):
    n = 4000
    found = inclusion.agreement([name], depth, list_size, n)[name]
    error = np.sqrt(found["exact"] * (1 - found["exact"]) / n)
    assert ((found["drawn"] - found["exact"]).abs() <= 5 * error + 1e-9).all()


def test_too_deep_a_list_is_refused():
    with pytest.raises(ValueError, match="expected list_size <= depth <= 9, got 4 and 10"):
        inclusion.exact("random", 10, 4)


def test_losers_come_first_and_gainers_last():
    values = pd.DataFrame({"a": [0.5, 0.5, 0.5, 0.5], "b": [0.1, 0.5, 0.9, 0.6]}, list("wxyz"))
    assert movers.extremes(values, "b", "a", 1).index.tolist() == ["w", "y"]
    assert movers.extremes(values, "b", "a", 9).index.tolist() == ["w", "z", "y"]


def test_what_moved_is_told_with_its_text_escaped(results):
    changed = results.values["student"] != results.values["first stage"]
    query_id = results.values.index[changed][0]
    changes = movers.extremes(results.values.loc[[query_id]], "student", "first stage", 1)
    example = worked.example_of(results, query_id, ["first stage", "student"])
    came = (example.ranks["student"] <= 3) & (example.ranks["first stage"] > 3)
    text = movers.table(changes, results, "student").data
    assert text.count("<li>") == 2 * came.sum()
    assert all(f"rank {was} → {now}" in text for was, now in example.ranks[came].to_numpy())
    assert "came in" in text


def test_files_hold_what_was_measured_and_ranked(part, results, tmp_path):
    values, _, runs = files.write("effectiveness", {"bm25": part}, tmp_path)
    assert pd.read_csv(values)["query_id"].nunique() == 8
    with zipfile.ZipFile(runs) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert "bm25/student-rdl-pydocs-test-seed1.run" in names
    assert len(names) == 4 + 5 * 2  # four orders; five systems with a student of each seed
    back = read_candidates(tmp_path / "bm25" / "student-rdl-pydocs-test-seed1.run")
    kept = pd.read_parquet(results.rankings["student"][1].folder / "run.parquet")
    assert len(back) == len(kept)
    first = kept.sort_values("score", ascending=False).groupby("query_id").head(1)
    assert set(back[back["rank"] == 1]["doc_id"]) == set(first["doc_id"])
    again = files.write("effectiveness", {"bm25": part}, tmp_path / "again")[2]
    assert again.read_bytes() == runs.read_bytes()


def test_the_pull_of_a_pair_is_the_slope_of_its_loss():
    values, pull = (axes.lines[0].get_ydata() for axes in pictures.margins(["ranknet"]).axes[:2])
    x = np.linspace(-4, 4, 161)
    np.testing.assert_allclose(values, np.log1p(np.exp(-x)) / np.log(2), atol=1e-6)
    np.testing.assert_allclose(pull[1:-1], -np.gradient(values, x)[1:-1], atol=1e-3)


def test_nothing_to_take_along_without_a_part(tmp_path):
    assert files.write("costs", {}, tmp_path) == []


def test_a_part_needs_no_student(tmp_path, part):
    alone = Part(profile=part.profile, systems={"BM25": "first_stage"}, baseline="BM25")
    assert files.write("x", {"one": alone}, tmp_path)[0].exists()


def test_agreement_is_kendalls_tau_and_the_shared_top():
    """Two answers that differ in one swap over a third, next to a first stage turned round."""
    ids = [f"d{i}" for i in range(12)]
    run = pd.DataFrame({"query_id": "q", "doc_id": ids, "teacher_rank": range(1, 13)})
    swapped = run.assign(teacher_rank=[1, 2, 3, 4, 5, 6, 7, 8, 11, 10, 9, 12])
    first = run.assign(rank=run["teacher_rank"].to_numpy()[::-1])
    found = agreement.between([run, swapped], first).loc["q"]
    pairs = 12 * 11 / 2
    assert found["kendall_tau"] == pytest.approx((pairs - 6) / pairs)
    assert found["overlap"] == pytest.approx(9 / 10)
    assert found["first_stage_tau"] == pytest.approx((-1 - (pairs - 6) / pairs) / 2)
