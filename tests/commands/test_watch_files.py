"""`grpokit watch` reads files that a run is still writing: what is new, torn, rewritten, malformed, or out of bounds."""

from __future__ import annotations

import json
import math
import os
import time

import numpy as np
import pytest

from grpokit.commands.watch.completions import Wanted, chosen, rows_of
from grpokit.commands.watch.discover import find_runs
from grpokit.commands.watch.follow import GrowingFile, inside
from grpokit.commands.watch.index import CompletionIndex
from grpokit.commands.watch.run import WatchedRun
from grpokit.commands.watch.series import panels, places_to_keep, side_by_side
from grpokit.commands.watch.table import Table, table_run
from grpokit.commands.watch.tokens import read_tokens, recorded_steps, tokens_of
from grpokit.runs.jsonl import JsonLines
from helpers.synthetic_runs import a_group, write_lines
from helpers.watched import append_step, make_watched_run, some_groups, write_tokens


def lines_of(file):
    file.is_rewritten()
    return [line for _, line in file.new_lines()]


def write(path, text, mode="a"):
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)


# --------------------------------------------------------------------------- growing files


def test_only_new_and_complete_lines_are_read(tmp_path):
    file = GrowingFile(tmp_path, "metrics.jsonl")
    assert lines_of(file) == []  # it isn't there yet
    write(tmp_path / "metrics.jsonl", '{"step": 1}\n{"step": 2')
    assert lines_of(file) == [b'{"step": 1}\n']
    assert lines_of(file) == []
    write(tmp_path / "metrics.jsonl", '2}\n{"step": 3}\n')
    assert lines_of(file) == [b'{"step": 22}\n', b'{"step": 3}\n']
    assert file.restarts == 0


def test_a_file_that_a_resume_has_replaced_is_read_again(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, "reward": 0.1 * step} for step in range(1, 6)])
    table = Table(tmp_path, "metrics.jsonl")
    table.refresh()
    resumed = JsonLines(tmp_path / "metrics.jsonl", 2)  # as a run does that resumes from step 2
    for step in range(3, 9):  # it gets longer than it was
        resumed.write({"step": step, "reward": 9.0})
    resumed.close()
    table.refresh()
    assert list(table.steps) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert table.series("reward")[1] == [0.1, 0.2, *[9.0] * 6]


def test_a_file_that_was_cut_in_place_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": step, "kl": 1.0} for step in range(1, 6)])
    table = Table(tmp_path, "metrics.jsonl")
    table.refresh()
    with path.open("r+", encoding="utf-8") as file:
        file.truncate(0)
        file.writelines(json.dumps({"step": step, "kl": 2.0}) + "\n" for step in (1, 2))
    table.refresh()
    assert list(table.steps) == [1, 2]
    assert table.series("kl")[1] == [2.0, 2.0]


def test_a_step_that_comes_again_supersedes_all_later_ones(tmp_path):
    table = Table(tmp_path, "metrics.jsonl")
    for step in (1, 2, 3, 4, 2):
        table.add(step, {"reward": float(len(table))})
    assert list(table.steps) == [1, 2]
    assert table[-1] == {"step": 2, "reward": 4.0}


def test_a_table_keeps_numbers_and_leaves_out_what_a_step_lacks(tmp_path):
    table = Table(tmp_path, "metrics.jsonl")
    table.add(1, {"reward": 0.5, "said": "text", "done": True})
    table.add(2, {"kl": 0.1, "reward": math.nan})
    table.add(3, {"kl": 0.2, "reward": 0.7})
    assert table[:2] == [{"step": 1, "reward": 0.5}, {"step": 2, "kl": 0.1}]
    assert table.series("reward") == ([1, 3], [0.5, 0.7])
    assert [row["step"] for row in table] == [1, 2, 3]


def test_lines_that_are_no_rows_are_named_and_left_out(tmp_path):
    write(tmp_path / "metrics.jsonl", '{"step": 1}\nnonsense\n[1]\n{"step": -3}\n\n{"step": 2}\n')
    run = WatchedRun("run", tmp_path)
    run.refresh()
    assert list(run.metrics.steps) == [1, 2]
    assert [problem.split(":")[0] for problem in run.problems()] == [
        "metrics.jsonl, byte 12",
        "metrics.jsonl, byte 21",
        "metrics.jsonl, byte 25",
    ]


# --------------------------------------------------------------------------- completions


def test_the_index_finds_each_steps_lines_as_they_come(tmp_path):
    index = CompletionIndex(tmp_path)
    path = tmp_path / "completions.jsonl"
    write_lines(path, [*some_groups(1, 2), *some_groups(2, 3)])
    index.refresh()
    assert index.steps() == [1, 2]
    append = [json.dumps(group, ensure_ascii=False) for group in some_groups(3, 2)]
    write(path, append[0] + "\n" + append[1][:50])
    index.refresh()
    assert len(index.groups(3)) == 1
    write(path, append[1][50:] + "\n")
    index.refresh()
    assert [group["source"] for group in index.groups(3)] == ["train.jsonl:1", "train.jsonl:2"]
    assert index.groups(2) == some_groups(2, 3)
    assert index.groups(7) == []


def test_the_index_drops_completions_that_a_resume_has_superseded(tmp_path):
    write_lines(
        tmp_path / "completions.jsonl",
        [a_group(step, [1.0], prompt=f"{n}") for n, step in enumerate((1, 2, 3, 2))],
    )
    index = CompletionIndex(tmp_path)
    index.refresh()
    assert index.steps() == [1, 2]
    assert [group["prompt"] for group in index.groups(2)] == ["3"]


def test_the_index_reads_lines_whose_step_comes_last(tmp_path):
    write(tmp_path / "completions.jsonl", '{"prompt": "a", "step": 4}\nnonsense\n')
    index = CompletionIndex(tmp_path)
    index.refresh()
    assert index.groups(4) == [{"prompt": "a", "step": 4}]
    assert "not JSON" in index.problems[0]


def test_filters_keep_what_they_say():
    groups = some_groups(3, 4)
    rows = rows_of(groups)
    assert len(rows) == 32
    assert {row["ending"] for row in rows} >= {"stop", "length", "done"}
    best = chosen(rows, Wanted(reward=(1.0, None)))
    assert best == [row for row in rows if row["reward"] == 1.0] != []
    short = chosen(rows, Wanted(length=(None, 25)))
    assert short
    assert all(row["length"] <= 25 for row in short)
    assert all(row["ending"] == "length" for row in chosen(rows, Wanted(ending="length")))
    assert [row for row in rows if "FIRST".casefold() in row["text"].casefold()] == chosen(
        rows, Wanted(text="FIRST")
    )
    by_length = [row["length"] for row in chosen(rows, Wanted(sort="length", descending=False))]
    assert by_length == sorted(by_length)


def test_completions_without_a_reward_come_last_and_pass_no_bound():
    rows = rows_of([a_group(1, [None, 0.5, 1.0])])
    assert [row["reward"] for row in chosen(rows, Wanted(sort="reward"))] == [1.0, 0.5, None]
    assert [row["reward"] for row in chosen(rows, Wanted(sort="reward", descending=False))] == [
        0.5,
        1.0,
        None,
    ]
    assert len(chosen(rows, Wanted(reward=(None, 1.0)))) == 2


# --------------------------------------------------------------------------- tokens


def test_tokens_of_a_completion_are_those_of_the_file(tmp_path):
    write_tokens(tmp_path, 12, num=3, length=10)
    assert recorded_steps(tmp_path) == [12]
    file = read_tokens(tmp_path, 12)
    whole = [tokens_of(file, place, 0, 100) for place in range(3)]
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "tokens" / "step-000012.safetensors")
    logps = np.array([value for part in whole for value in part["logps"]])
    np.testing.assert_allclose(logps, tensors["logps"], rtol=1e-4)
    known = [value is not None for part in whole for value in part["ratios"]]
    assert known == (~np.isnan(tensors["ratios"])).tolist()
    assert False in known
    assert tokens_of(file, 1, 4, 3)["ids"] == tensors["ids"][14:17].tolist()
    assert tokens_of(file, 1, 8, 5)["pieces"] == whole[1]["pieces"][8:]  # not into the next completion
    assert tokens_of(file, 1, 50, 5)["pieces"] == []
    with pytest.raises(ValueError, match="completion 3: the step has 3 recorded ones"):
        tokens_of(file, 3, 0, 1)


def test_a_file_that_is_no_file_of_tokens_is_named(tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "step-000003.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step-000003\.safetensors: is not a file of tokens"):
        read_tokens(tmp_path, 3)
    with pytest.raises(ValueError, match=r"step 4: its tokens were not recorded.*--log_tokens"):
        read_tokens(tmp_path, 4)


def test_tokens_of_steps_after_the_last_one_are_not_shown(tmp_path):
    make_watched_run(tmp_path / "run", 20, 8)
    write_tokens(tmp_path / "run", 15)  # left over from before a resume
    run = WatchedRun("run", tmp_path / "run")
    run.refresh()
    assert run.shown_token_steps() == [1, 6]


# --------------------------------------------------------------------------- where files and runs may be


def test_a_link_that_leads_out_of_the_run_is_refused(tmp_path):
    make_watched_run(tmp_path / "run", 3)
    (tmp_path / "secret").write_text("{}\n")
    for name in ("metrics.jsonl", "completions.jsonl", "about.json", "config.yaml"):
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(tmp_path / "secret")
    run = WatchedRun("run", tmp_path / "run")
    run.refresh()
    assert len(run.metrics) == 0
    assert {problem.split(":")[0] for problem in run.problems()} >= {
        "metrics.jsonl",
        "about.json",
        "config.yaml",
    }
    assert all("leads out of the run's directory" in problem for problem in run.problems())
    with pytest.raises(ValueError, match="leads out of the run's directory"):
        run.completions.refresh()


def test_a_link_within_the_run_is_read(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_text("text")
    (tmp_path / "run" / "about.json").symlink_to("kept")
    assert inside(tmp_path / "run", "about.json")
    assert inside(tmp_path / "run", "nothing") is None
    with pytest.raises(ValueError, match="leads out"):
        inside(tmp_path / "run", "../run2")


def test_tokens_behind_a_link_that_leads_out_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    write_tokens(tmp_path, 1)
    (tmp_path / "run" / "tokens").symlink_to(tmp_path / "tokens")
    with pytest.raises(ValueError, match="leads out"):
        recorded_steps(tmp_path / "run")
    with pytest.raises(ValueError, match="leads out"):
        read_tokens(tmp_path / "run", 1)


def test_runs_are_found_in_directories_of_runs(tmp_path):
    for name in (
        "runs/demo",
        "runs/sweep/seed-1",
        "runs/sweep/seed-10",
        "runs/sweep/seed-2",
        "runs/a/b/too-deep",
        "else/demo",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "runs" / "demo" / "checkpoint-5" / "trainer").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "checkpoint-5" / "trainer" / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "runs" / "out").symlink_to(tmp_path / "else" / "demo")
    assert list(find_runs([tmp_path / "runs"])) == ["demo", "sweep/seed-1", "sweep/seed-2", "sweep/seed-10"]
    assert find_runs([tmp_path / "runs" / "out"]) == {
        "demo": tmp_path / "runs" / "out"
    }  # a link that is named itself
    both = [tmp_path / "runs" / "demo", tmp_path / "else" / "demo"]
    assert find_runs(both) == {str(path): path for path in both}
    assert find_runs([tmp_path / "later"]) == {"later": tmp_path / "later"}


# --------------------------------------------------------------------------- how a run is getting on


def status(run):
    run.refresh()
    return run.status()


def test_a_run_waits_then_runs_and_finishes(tmp_path):
    folder = tmp_path / "run"
    run = WatchedRun("run", folder)
    assert status(run).text == "waiting for the first step"
    make_watched_run(folder, 100, 40)
    now = status(run)
    assert (now.state, now.step, now.max_steps) == ("running", 40, 100)
    assert now.seconds_left == pytest.approx(60 * 0.4)
    (folder / "final").mkdir()
    assert status(run).state == "finished"
    os.utime(folder / "final", (1, 1))  # resumed long after, with more steps
    assert status(run).state == "running"


def test_a_run_that_writes_nothing_for_long_is_quiet(tmp_path):
    make_watched_run(tmp_path, 100, 40)
    ago = time.time() - 12 * 60 - 5
    os.utime(tmp_path / "metrics.jsonl", (ago, ago))
    run = WatchedRun("run", tmp_path)
    now = status(run)
    assert now.state == "quiet"
    assert now.text == "no new step for 12 min; a step takes 0.4 s"
    append_step(tmp_path, 41, 100)
    assert status(run).state == "running"


def test_a_run_whose_clock_is_ahead_becomes_quiet_too(tmp_path, monkeypatch):
    make_watched_run(tmp_path, 100, 40)
    ahead = time.time() + 3600
    os.utime(tmp_path / "metrics.jsonl", (ahead, ahead))
    run = WatchedRun("run", tmp_path)
    assert status(run).state == "running"
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert status(run).state == "quiet"


def test_a_run_that_failed_shows_the_last_line_of_its_error(tmp_path):
    make_watched_run(tmp_path, 100, 40)
    (tmp_path / "error.txt").write_text(
        "Traceback ...\n" + "x" * 100_000 + "\nValueError: the reward is NaN\n"
    )
    run = WatchedRun("run", tmp_path)
    assert (status(run).state, run.status().text) == ("failed", "ValueError: the reward is NaN")
    later = time.time() + 10
    os.utime(tmp_path / "metrics.jsonl", (later, later))  # it was resumed
    assert status(run).state == "running"


def test_a_run_by_epochs_has_its_steps_from_what_the_run_says_of_itself(tmp_path):
    make_watched_run(tmp_path, 100, 40)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 100\n", ""))
    run = WatchedRun("run", tmp_path)
    assert (status(run).max_steps, run.status().seconds_left) == (None, None)
    (tmp_path / "about.json").write_text('{"max_steps": 50}')
    assert status(run).max_steps == 50


def test_versions_change_with_what_a_view_shows(tmp_path):
    make_watched_run(tmp_path, 100, 10)
    run = WatchedRun("run", tmp_path)
    run.refresh()
    before = run.versions()
    run.refresh()
    assert run.versions() == before
    append_step(tmp_path, 11, 100)
    run.refresh()
    assert all(run.versions()[view] != before[view] for view in ("overview", "completions", "tokens"))


# --------------------------------------------------------------------------- curves


def test_a_long_series_keeps_its_extremes():
    values = [math.sin(i / 50) for i in range(20_000)]
    values[7_001], values[12_345] = 9.0, -9.0
    kept = places_to_keep(values, 800)
    assert len(kept) <= 800
    assert {0, 7_001, 12_345, 19_999} <= set(kept)
    assert kept == sorted(set(kept))
    assert places_to_keep([1.0] * 5, 800) == [0, 1, 2, 3, 4]


def test_panels_are_the_reports(tmp_path):
    make_watched_run(tmp_path, 60)
    run = WatchedRun("run", tmp_path)
    run.refresh()
    found = {panel["key"]: panel for panel in panels(run.tables())}
    assert list(found)[:3] == ["reward", "reward-functions", "evaluation"]
    assert {"memory", "throughput", "utilization", "time", "cut-off", "learning-rate"} <= found.keys()
    assert [line["label"] for line in found["throughput"]["lines"]] == ["whole step", "sampling", "learning"]
    assert len(found["reward"]["lines"][0]["x"]) == len(found["reward"]["lines"][0]["low"]) == 60
    phases = [line["y"][0] for line in found["time"]["lines"]]
    assert sum(phases) == pytest.approx(0.4)
    assert found["evaluation"]["lines"][0]["x"] == [0, 60]


def test_evaluations_in_the_metrics_count_too(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"step": 1, "reward": 0.1, "eval/pass@1": 0.2}, {"step": 2, "eval/pass@1": 0.3}],
    )
    metrics, figures = Table(tmp_path, "metrics.jsonl"), Table(tmp_path, "evaluations.jsonl")
    metrics.refresh()
    run = table_run(tmp_path, {}, metrics, figures)
    assert run.evaluation("eval/pass@1") == ([1, 2], [0.2, 0.3])
    assert "evaluation" in [panel["key"] for panel in panels(run)]


def test_several_runs_share_plots(tmp_path):
    for name, steps in (("a", 30), ("b", 20)):
        make_watched_run(tmp_path / name, steps)
    runs = {name: WatchedRun(name, tmp_path / name) for name in "ab"}
    for run in runs.values():
        run.refresh()
    plots = side_by_side({name: run.tables() for name, run in runs.items()})
    titles = {plot["title"]: [line["label"] for line in plot["lines"]] for plot in plots}
    assert (
        titles["Reward"]
        == titles["Tokens clipped: below the range"]
        == titles["Time of a step"]
        == ["a", "b"]
    )
    assert len({plot["key"] for plot in plots}) == len(plots)
