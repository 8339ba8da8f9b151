"""The report of a run that is in progress, hardly begun, malformed or very long."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from grpokit.runs.report import write_report
from grpokit.runs.report.markup import box, escape, number, seconds
from grpokit.runs.report.series import MOST_POINTS, smooth, thin, trend_window
from helpers.synthetic_runs import a_group, make_run, plots, report, write_lines

# --------------------------------------------------------------------------- half a run


def test_nulls_and_missing_keys_are_left_out(tmp_path):
    path = make_run(tmp_path / "r", steps=40)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rng = random.Random(1)
    for row in rows:
        for name in [name for name in row if name != "step"]:
            if rng.random() < 0.3:
                row[name] = rng.choice([None, float("nan"), float("inf"), "text", True])
            elif rng.random() < 0.3:
                del row[name]
    write_lines(path / "metrics.jsonl", rows)
    write_lines(
        path / "completions.jsonl", [{"step": 40}, {"step": 40, "reward": [None], "completions": ["x"]}]
    )
    page = report(path)
    assert "reward" in plots(page)
    assert "no reward" in page


@pytest.mark.parametrize("steps", [1, 2, 16, 31])
def test_short_runs_have_a_page(tmp_path, steps):
    assert "time" in plots(report(make_run(tmp_path / "r", steps=steps)))


@pytest.mark.parametrize(
    "row", [{"step": 3}, {"step": 0, "eval/pass@1": 0.5}, {"step": 1, "reward": None}, {"reward": 0.5}]
)
def test_a_run_with_hardly_anything(tmp_path, row):
    path = make_run(tmp_path / "r")
    write_lines(path / "metrics.jsonl", [row])
    for name in ("evaluations.jsonl", "completions.jsonl"):
        (path / name).unlink()
    page = report(path)
    assert "<h1>r</h1>" in page
    assert "Completions" not in page


def test_a_metric_that_never_moves(tmp_path):
    path = make_run(tmp_path / "r")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(
        path / "metrics.jsonl",
        [{name: 0.0 if name != "step" else v for name, v in row.items()} for row in rows],
    )
    assert "clip" in plots(report(path))


def test_half_a_last_line_is_a_run_in_progress(tmp_path):
    path = make_run(tmp_path / "r", steps=10)
    whole = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    torn = '{"step": 10, "note": "é'.encode()[:-1]  # within a character
    (path / "metrics.jsonl").write_bytes(b"".join(whole[:9]) + torn)
    with (path / "completions.jsonl").open("a") as file:
        file.write('{"step": 11, "prom')
    text = re.sub(r"<[^>]+>", " ", report(path))
    assert re.search(r"Steps\s+9\s+of 10, not finished", text)


@pytest.mark.parametrize("name", ["metrics.jsonl", "completions.jsonl", "evaluations.jsonl"])
@pytest.mark.parametrize("line", ["{nonsense", "[1, 2]", '{"step": "one"}', '{"step": -1}', '{"step": 1.5}'])
def test_a_malformed_line_is_named(tmp_path, name, line):
    path = make_run(tmp_path / "r")
    first = (path / name).read_text().splitlines()[0]
    (path / name).write_text(f"{first}\n{line}\n{first}\n")
    with pytest.raises(ValueError, match=rf"{name}:2: ") as caught:
        write_report(path)
    assert str(path) in str(caught.value)
    assert not (path / "report.html").exists()


def test_what_is_not_a_run_is_named(tmp_path):
    path = make_run(tmp_path / "r")
    (tmp_path / "empty").mkdir()
    (path / "metrics.jsonl").write_text("")
    cases = {
        tmp_path / "nowhere": "no such directory",
        path / "config.yaml": "is a file",
        tmp_path / "empty": "is not a run",
        path: "no metrics yet",
    }
    for place, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            write_report(place)
        assert str(place) in str(caught.value)
        assert "expected" in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_a_missing_file_is_named(tmp_path, name):
    path = make_run(tmp_path / "r")
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: no such file; expected"):
        write_report(path)


@pytest.mark.parametrize(("text", "message"), [("- 1\n- 2", "got list"), ("a: [", "not YAML")])
def test_a_malformed_config_is_named(tmp_path, text, message):
    path = make_run(tmp_path / "r")
    (path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml: .*{message}"):
        write_report(path)


def test_output_and_the_same_bytes_each_time(tmp_path):
    path = make_run(tmp_path / "r", steps=2)
    assert write_report(path) == path / "report.html"
    wanted = tmp_path / "new" / "page.html"
    assert write_report(str(path), str(wanted)) == wanted
    assert wanted.read_bytes() == (path / "report.html").read_bytes()
    with pytest.raises(ValueError, match="is a directory"):
        write_report(path, tmp_path)
    with pytest.raises(ValueError, match=r"--output .*expected a file that can be written"):
        write_report(path, wanted / "below-a-file.html")


# --------------------------------------------------------------------------- long runs


def test_a_long_run_stays_light(tmp_path):
    groups = [a_group(5000, [float(i % 2) for i in range(64)], completions=["word " * 4000] * 64)] * 4
    path = make_run(tmp_path / "r", steps=5000, groups=groups)
    page = report(path)
    assert len(page.encode()) < 1_000_000
    assert "48 more between these" in page


def test_thin_keeps_the_means_of_neighbours():
    x, y = thin(range(10_000), [float(i % 2) for i in range(10_000)])
    assert len(x) == len(y) == MOST_POINTS
    np.testing.assert_allclose(y, 0.5, atol=0.03)  # runs of 25 have 12 or 13 ones
    np.testing.assert_allclose(np.diff(x), 25)
    values = np.random.default_rng(0).normal(size=1_001)
    assert thin(range(1_001), values, "max")[1].max() == values.max()
    assert thin(range(1_001), values, "min")[1].min() == values.min()
    np.testing.assert_array_equal(thin([1, 5], [2.0, 3.0])[1], [2.0, 3.0])
    assert thin([], [])[0].shape == (0,)


def test_smooth_is_a_rolling_mean():
    line = np.arange(50.0)
    half = 10
    np.testing.assert_allclose(smooth(line, 2 * half + 1)[4:-4], line[4:-4])  # never lags
    np.testing.assert_allclose(smooth(np.full(50, 3.0), 21), 3.0)
    np.testing.assert_array_equal(smooth(line, 1), line)
    assert trend_window(10) == 1
    assert trend_window(400) % 2 == 1


def test_numbers_are_short_and_readable():
    assert [number(v) for v in (0.96712, 12.34, -0.5, 1.2e-6, 0)] == [
        "0.967",
        "12.3",
        "\u22120.5",
        "1.2e-06",
        "0",
    ]
    assert [seconds(v) for v in (0.25, 37.2, 754, 12_000)] == ["0.25 s", "37 s", "12 min 34 s", "3 h 20 min"]
    assert escape("a\x07<") == "a\ufffd&lt;"
    assert 'tabindex="0"' in box("x" * 1000)


def test_importing_the_report_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys, grpokit.runs.report; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
