"""The report runs nothing, fetches nothing and escapes every text, and no browser scrolls it sideways."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from grpokit.runs.report.markup import LONGEST
from helpers.synthetic_runs import FORMULA, evil_run, make_run, plots, report


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """The page of `evil_run`."""
    return report(evil_run(tmp_path_factory.mktemp("evil") / "r"), formula=FORMULA)


# --------------------------------------------------------------------------- what must never be in it


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
