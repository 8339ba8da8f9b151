"""The report: what is in the page, what must never be in it, what it does with half a run, and its width."""

import html
import json
import math
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from grpokit.config import TrainConfig
from grpokit.overlay import to_yaml
from grpokit.report import write_report
from grpokit.report.markup import LONGEST, box, escaped, number, seconds
from grpokit.report.series import MOST_POINTS, smooth, thin, trend_window

FORMULA = "\n".join(
    [
        r"L = \sum_{i,t} w_i\,\ell_{i,t}",
        r"\ell = -\min\left(\rho\,A,\ \mathrm{clip}(\rho,\,1-\epsilon,\,1+\epsilon_{high})\,A\right)",
        r"w_i = \frac{1}{N\,T_i}",
    ]
)
EVIL = '<script>alert("x")</script> & <b>bold</b> https://example.com </pre></main>'


# --------------------------------------------------------------------------- synthetic runs


def metrics_row(step, steps, loss_type, rng):
    """A plausible row of metrics.jsonl."""
    done = 1 - math.exp(-4 * step / steps)
    reward = 0.3 + 0.65 * done + rng.gauss(0, 0.03)
    row = {
        "step": step,
        "reward": reward,
        "reward_std": 0.45 * (1 - done) + 0.05,
        "frac_reward_zero_std": done * 0.7,
        "rewards/exact_match/mean": reward,
        "rewards/format/mean": 0.6 + 0.4 * done,
        "completions/mean_length": 60 - 10 * done,
        "completions/min_length": 20.0,
        "completions/max_length": 128.0,
        "completions/clipped_ratio": 0.1 * (1 - done),
        "entropy": 1.1 - done,
        "loss": rng.gauss(0, 0.01),
        "grad_norm": abs(rng.gauss(1, 0.2)),
        "learning_rate": 3e-4,
        "kl": 0.05 * done,
        "ratio/ess": 0.98,
        "ratio/max": 1.5,
        "tokens_per_second": 4000.0,
        "frac_tokens_dropped": done * 0.6,
        "time/step": 0.4,
        "time/rollout": 0.1,
        "time/reward": 0.01,
        "time/learn": 0.25,
        "time/sync": 0.0,
    }
    if loss_type == "sapo":
        return row | {"gate/mean": 0.97}
    return row | {"clip_ratio/low_mean": 0.012, "clip_ratio/high_mean": 0.0, "clip_ratio/region_mean": 0.012}


def a_group(step, total, **changes):
    """A group of completions.jsonl with these rewards."""
    group = {
        "step": step,
        "prompt": "3142=",
        "source": "train.jsonl:7",
        "columns": {"answer": "1234"},
        "completions": [f"completion {i}" for i in range(len(total))],
        "rewards": {"exact_match": total},
        "reward": total,
        "advantages": [0.5 if reward else -0.5 for reward in total],
        "finish_reasons": ["stop"] * len(total),
    }
    return group | changes


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(path, steps=20, loss_type="grpo", groups=None, **options):
    """A run's directory."""
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    config = TrainConfig(model="m", dataset="d.jsonl", loss_type=loss_type, max_steps=steps, **options)
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    rows = [metrics_row(step, steps, loss_type, rng) for step in range(1, steps + 1)]
    figures = [
        {
            "step": step,
            "eval/pass@1": p,
            "eval/pass@1_greedy": p + 0.02,
            "eval/pass@4": p + 0.03,
            "eval/reward": p,
        }
        for step, p in ((0, 0.312), (steps, 0.951))
    ]
    rows[-1] |= figures[-1]
    write_lines(path / "metrics.jsonl", rows)
    write_lines(path / "evaluations.jsonl", figures)
    if groups is None:
        groups = [
            a_group(steps - 1, [1.0, 1.0]),
            a_group(steps, [1.0, 0.0], prompt="middle"),
            a_group(steps, [0.0, 0.0], prompt="the worst"),
            a_group(steps, [1.0, 1.0], prompt="the best"),
        ]
    write_lines(path / "completions.jsonl", groups)
    return path


def report(path, **how):
    """The page of a run."""
    return write_report(path, **how).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def grpo_page(tmp_path_factory):
    """The page of an ordinary run, with its formula."""
    return report(make_run(tmp_path_factory.mktemp("grpo") / "r"), formula=FORMULA)


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """The page of `evil_run`."""
    return report(evil_run(tmp_path_factory.mktemp("evil") / "r"), formula=FORMULA)


def plots(page):
    """The keys of the plots in the page, in order."""
    return re.findall(r'id="plot-([a-z-]+)"', page)


# --------------------------------------------------------------------------- what is in the page


def test_plots_of_a_grpo_run(grpo_page):
    page = grpo_page
    assert plots(page) == [
        "reward",
        "reward-functions",
        "evaluation",
        "clip",
        "ess",
        "ratio",
        "entropy",
        "length",
        "zero-std",
        "grad-norm",
        "kl",
        "time",
        "throughput",
        "loss",
        "learning-rate",
    ]
    assert page.count("<figcaption>") == len(plots(page))
    assert page.count("<svg") == len(plots(page)) + 1 + 3  # the reward's for phones, three lines of formula
    assert page.count("aria-label=") == page.count("<svg")


def test_plots_follow_what_the_run_measured(tmp_path):
    shown = plots(report(make_run(tmp_path / "r", loss_type="sapo")))
    assert "gate" in shown
    assert "clip" not in shown


def test_cards(grpo_page):
    text = re.sub(r"<[^>]+>", " ", grpo_page)
    for wanted in (
        r"pass@1, sampled\s+31\.2% →\s+95\.1%",
        r"pass@1, greedy\s+33\.2% →\s+97\.1%",
        r"pass@4\s+34\.2% →\s+98\.1%",
        r"Steps\s+20\s+all done",
        r"Wall time\s+8 s",
        r"Reward\s+0\.\d{3} →\s+0\.\d{3}\s+training, first and last 2 steps",
    ):
        assert re.search(wanted, text), wanted


def test_evaluation_figures_within_metrics(tmp_path):
    """The evaluation before training may be a row of its own in metrics.jsonl, with nothing but eval/ figures."""
    path = make_run(tmp_path / "r", steps=3)
    (path / "evaluations.jsonl").unlink()
    rows = [{"step": 0, "eval/pass@1": 0.25}, {"step": 0, "reward": 0.2}, {"step": 1, "reward": 0.3}]
    write_lines(path / "metrics.jsonl", [*rows, {"step": 2, "reward": 0.4, "eval/pass@1": 0.75}])
    text = re.sub(r"<[^>]+>", " ", report(path))
    assert re.search(r"25\.0% →\s+75\.0%\s+held-out, step 0 → 2", text)
    assert re.search(r"Steps\s+3\s+all done", text)


def test_best_and_worst_group_of_the_last_step(grpo_page):
    page = grpo_page
    best, worst = page.index("Best group"), page.index("Worst group")
    assert best < page.index(">the best<") < worst < page.index(">the worst<")
    assert ">middle<" not in page
    assert "Completions of step 20" in page


def test_configuration_marks_what_was_changed(tmp_path):
    page = report(make_run(tmp_path / "r", num_iterations=2))
    changed = re.findall(r"<tr class=\"changed\"><th scope='row'>([a-z_<>]+)</th>", page)
    assert [name.replace("<wbr>", "") for name in changed] == [
        "model",
        "dataset",
        "num_iterations",
        "max_steps",
    ]
    assert re.search(r"4 of \d+ options differ from their defaults", page)
    assert page.index("num_<wbr>iterations") < page.index("num_<wbr>generations")
    assert "default 1</span>" in page


def test_formula_is_drawn_or_shown_as_it_is(tmp_path):
    page = report(make_run(tmp_path / "r"), formula=r"a = \frac{1}{N}" + "\n" + r"\nosuchcommand{<x>}")
    assert 'aria-label="a = \\frac{1}{N}"' in page
    assert r"<code>\nosuchcommand{&lt;x&gt;}</code>" in page
    assert "The loss" not in report(tmp_path / "r")


# --------------------------------------------------------------------------- what must never be in it


def evil_run(path):
    """A run in which everything that a user or a model writes is hostile or very long."""
    groups = [
        a_group(
            20,
            [1.0, 0.0, None],
            prompt=[{"role": EVIL, "content": EVIL}, {"role": "user", "content": [{"type": "text"}]}],
            source=EVIL,
            columns={EVIL: EVIL, "long": "w" * 3000},
            completions=[EVIL, "x" * 30_000, "half a pair \ud800, a zero \x00, a return \r\n."],
            rewards={EVIL: [1.0, 0.0, None], "long_" * 40: [1.0, None, 2.0]},
        ),
        a_group(20, [0.0, 0.0], completions=["", "汉字 العربية " * 50], finish_reasons=["length"]),
    ]
    make_run(path, groups=groups, ref_model=EVIL, eval_dataset="d/" * 200)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(path / "metrics.jsonl", [{**row, "rewards/$x_1$ 汉 <i>/mean": 0.5} for row in rows])
    return path


class Tags(HTMLParser):
    """Checks that tags are closed in order, and gathers elements, addresses and ids."""

    VOID = frozenset({"meta", "link", "br", "wbr"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.references = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_runs_and_nothing_is_fetched(evil_page):
    page = evil_page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "iframe", "object", "embed", "b>bold", "img", "i>"}
    assert all(reference.startswith(("#", "data:")) for reference in tags.references)
    assert not re.findall(r"\son[a-z]+=", re.sub(r">[^<]*<", "><", page))  # no handlers
    markup = re.sub(r">[^<]*<", "><", page)  # tags without their text, where EVIL's address may stand
    assert not re.findall(r"https?://", re.sub(r'aria-label="[^"]*"', "", markup))
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "Content-Security-Policy" in page
    assert "@import" not in page


def test_an_ordinary_page_names_no_address_at_all(grpo_page):
    assert "<script" not in grpo_page
    assert "://" not in grpo_page


def test_texts_are_escaped(evil_page):
    page = evil_page
    assert "<script" not in page
    assert page.count("</pre>") == page.count("<pre ") + page.count("<pre>")
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &lt;b&gt;" in page
    assert "half a pair \ufffd, a zero \ufffd, a return \n." in page
    assert "(empty)" in page
    assert "cut off" in page
    assert f"{30_000 - LONGEST:,} characters left out" in page


def test_ids_are_unique_and_references_resolve(grpo_page):
    page, tags = grpo_page, Tags()
    tags.feed(page)
    assert len(tags.ids) == len(set(tags.ids))
    wanted = re.findall(r"url\(#([^)]+)\)", page) + [r[1:] for r in tags.references if r.startswith("#")]
    assert wanted
    assert set(wanted) <= set(tags.ids)


def test_no_style_of_a_plot_leaks_into_the_page(grpo_page):
    assert grpo_page.count("<style") == 1


# --------------------------------------------------------------------------- half a run


def test_nulls_and_missing_keys(tmp_path):
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
def test_short_runs(tmp_path, steps):
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


def test_thin():
    x, y = thin(range(10_000), [float(i % 2) for i in range(10_000)])
    assert len(x) == len(y) == MOST_POINTS
    np.testing.assert_allclose(y, 0.5, atol=0.03)  # runs of 25 have 12 or 13 ones
    np.testing.assert_allclose(np.diff(x), 25)
    values = np.random.default_rng(0).normal(size=1_001)
    assert thin(range(1_001), values, "max")[1].max() == values.max()
    assert thin(range(1_001), values, "min")[1].min() == values.min()
    np.testing.assert_array_equal(thin([1, 5], [2.0, 3.0])[1], [2.0, 3.0])
    assert thin([], [])[0].shape == (0,)


def test_smooth():
    line = np.arange(50.0)
    half = 10
    np.testing.assert_allclose(smooth(line, 2 * half + 1)[4:-4], line[4:-4])  # never lags
    np.testing.assert_allclose(smooth(np.full(50, 3.0), 21), 3.0)
    np.testing.assert_array_equal(smooth(line, 1), line)
    assert trend_window(10) == 1
    assert trend_window(400) % 2 == 1


def test_numbers():
    assert [number(v) for v in (0.96712, 12.34, -0.5, 1.2e-6, 0)] == [
        "0.967",
        "12.3",
        "\u22120.5",
        "1.2e-06",
        "0",
    ]
    assert [seconds(v) for v in (0.25, 37.2, 754, 12_000)] == ["0.25 s", "37 s", "12 min 34 s", "3 h 20 min"]
    assert escaped("a\x07<") == "a\ufffd&lt;"
    assert 'tabindex="0"' in box("x" * 1000)


def test_importing_it_is_cheap():
    code = "import sys, grpokit.report; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------- in a browser


MEASURE = """<!DOCTYPE html><body style="margin:0">
<iframe width="390" height="700" srcdoc="{page}"></iframe>
<iframe width="1280" height="700" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach(details => details.open = true);
    const shown = [...page.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width > 0);
    return [frame.contentWindow.innerWidth, page.documentElement.scrollWidth, shown.length].join(",");
  }});
  document.body.innerHTML = "<p>measured " + found.join(" ") + "</p>";
}};
</script>"""


@pytest.mark.parametrize("kind", ["plausible", "evil"])
def test_no_sideways_scrolling_in_a_browser(tmp_path, kind):
    """At 390 and 1280 px, with the configuration open, the page is no wider than its window.

    A headless window can't be narrower than about 500 px, so the page stands in frames of those widths.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(
            "NOT CHECKED IN A BROWSER: there is no `chromium` on the PATH; install it to run this test"
        )
    run = make_run(tmp_path / "r") if kind == "plausible" else evil_run(tmp_path / "r")
    long_formula = FORMULA + "\n" + " + ".join(rf"\frac{{x_{{{i}}}}}{{N}}" for i in range(80))
    page = report(run, formula=long_formula)
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(MEASURE.format(page=html.escape(page)), encoding="utf-8")
    profile = tmp_path / "profile"
    profile.mkdir()
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --window-size=1400,900"
    dumped = subprocess.run(
        [chromium, *flags.split(), f"--user-data-dir={profile}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    found = re.search(r"measured ([\d,]+) ([\d,]+)</p>", dumped.stdout)
    assert found, f"chromium gave {dumped.returncode}: {dumped.stderr[-2000:]}"
    for frame, wanted in zip(found.groups(), (390, 1280), strict=True):
        window, width, shown = map(int, frame.split(","))
        assert window == wanted
        assert width <= window
        assert shown == len(plots(page))  # every plot once: the reward's other size is hidden
