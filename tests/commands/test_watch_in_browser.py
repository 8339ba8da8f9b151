"""The page of `grpokit watch` in a real browser: it opens, grows, filters, explains a token, and asks nobody else."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from grpokit.commands.watch import run as watched_run
from grpokit.runs.advice import Advice
from helpers.browser import browser, page_of, serving
from helpers.synthetic_runs import EVIL, evil_run
from helpers.watched import append_step, make_watched_run, write_tokens

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def run(tmp_path):
    return make_watched_run(tmp_path / "demo", 100, 40)


def wait(page, condition, argument=None):
    """Waits until a JavaScript condition holds. It is a function, for the page allows no eval."""
    page.wait_for_function(condition, arg=argument)


def text(page, selector):
    return page.locator(selector).first.inner_text()


def test_a_run_opens_and_grows(chromium, run):
    with serving(run) as address, page_of(chromium, address) as page:
        page.wait_for_selector("#plot-reward path.curve")
        assert page.title() == "demo · grpokit watch"
        assert text(page, ".status").split("\n")[0].startswith("running")
        assert "step 40 of 100" in text(page, ".status")
        assert page.locator(".plot").count() > 15
        before = page.get_attribute("#plot-entropy path.curve", "d")
        page.evaluate("document.querySelector('#plot-entropy').dataset.mark = 'kept'")
        for step in range(41, 50):
            append_step(run, step, 100)
        page.wait_for_selector("text=step 49 of 100")
        wait(
            page,
            "before => document.querySelector('#plot-entropy path.curve').getAttribute('d') !== before",
            before,
        )
        assert (
            page.get_attribute("#plot-entropy", "data-mark") == "kept"
        )  # the chart grew; it wasn't made again


def test_a_page_waits_for_the_first_step(chromium, tmp_path):
    with serving(tmp_path / "later") as address, page_of(chromium, address) as page:
        page.wait_for_selector("text=waiting for the first step")
        assert page.locator(".plot").count() == 0
        make_watched_run(tmp_path / "later", 10, 2)
        page.wait_for_selector("text=step 2 of 10")
        page.wait_for_selector("#plot-reward path.curve")


def test_advice_is_at_the_top_of_the_page(chromium, run, monkeypatch):
    said = Advice("flat", "warn", "Half of the groups have <b>no spread</b>.", 40, "guides/not-learning.md#x")
    monkeypatch.setattr(watched_run.WatchedRun, "advice", lambda self: [said])
    with serving(run) as address, page_of(chromium, address) as page:
        page.wait_for_selector(".advice li.warn")
        told = text(page, ".advice")
        assert "Warning" in told
        assert said.text in told
        assert "step 40 · see docs/en/guides/not-learning.md#x" in told
        top = "(selector) => document.querySelector(selector).getBoundingClientRect().top"
        assert page.evaluate(top, ".advice") < page.evaluate(top, ".cards")


def test_figures_of_a_step_under_the_pointer_and_by_keys(chromium, run):
    with serving(run) as address, page_of(chromium, address) as page:
        chart = page.locator("#plot-entropy svg")
        chart.scroll_into_view_if_needed()
        chart.hover()
        assert text(page, "#plot-entropy .box p").startswith("step ")
        page.mouse.move(5, 5)
        wait(page, "() => document.querySelector('#plot-entropy .box').hidden")
        chart.focus()
        page.keyboard.press("End")
        assert text(page, "#plot-entropy .box p") == "step 40"
        page.keyboard.press("ArrowLeft")
        assert text(page, "#plot-entropy .box p") == "step 39"
        page.keyboard.press("Home")
        assert text(page, "#plot-entropy .box").split("\n")[-1] == "1.061"
        page.keyboard.press("Escape")
        assert page.locator("#plot-entropy .box").is_hidden()


def test_lines_are_toggled_smoothed_and_logarithmic(chromium, run):
    with serving(run) as address, page_of(chromium, address) as page:
        plot = page.locator("#plot-reward-functions")
        plot.locator("path.faint").first.wait_for()
        assert plot.locator("path.faint").count() == 2
        plot.get_by_role("button", name="format").press("Enter")
        assert plot.locator("path.curve").count() == 1
        page.get_by_label("rolling mean").uncheck()
        assert plot.locator("path.faint").count() == 0
        log = page.locator("#plot-entropy").get_by_role("button", name="log")
        before = page.get_attribute("#plot-entropy path.curve", "d")
        log.click()
        assert log.get_attribute("aria-pressed") == "true"
        assert page.get_attribute("#plot-entropy path.curve", "d") != before


def test_completions_are_filtered_and_opened(chromium, run):
    with serving(run) as address, page_of(chromium, f"{address}#/run/demo/completions") as page:
        page.wait_for_selector("text=32 of 32 completions that step 40 has recorded")
        assert page.locator(".rows > li").count() == 20  # the others are on the next page
        page.locator("[name=reward_min]").fill("1")
        page.wait_for_function(
            "() => !document.querySelector('[role=status].note').textContent.startsWith('32')"
        )
        assert all(row.startswith("reward 1") for row in page.locator(".rows > li").all_inner_texts())
        page.locator("[name=ending]").select_option("done")
        page.locator("[name=sort]").select_option("length")
        wait(page, "() => document.querySelectorAll('.rows > li').length < 9")
        row = page.locator(".rows > li").first
        assert "2 turns" in row.inner_text()
        row.get_by_role("button").press("Enter")
        page.wait_for_selector(".turn.trained")
        assert 'calculate({"expression":"6*7"})' in row.inner_text()
        assert "/completions/40/3/" in page.url
        assert not page.get_by_label("latest").is_checked()  # what one reads doesn't go away


def test_the_newest_completions_are_followed_and_earlier_ones_chosen(chromium, run):
    with serving(run) as address, page_of(chromium, f"{address}#/run/demo/completions") as page:
        page.wait_for_selector("text=that step 40 has recorded")
        append_step(run, 41, 100)
        page.wait_for_selector("text=that step 41 has recorded")
        page.get_by_role("slider").focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("text=that step 40 has recorded")
        append_step(run, 42, 100)
        page.wait_for_selector("text=step 40 of 42")
        page.get_by_label("latest").check()
        page.wait_for_selector("text=that step 42 has recorded")
        page.goto(f"{address}#/run/demo/completions/7")
        page.wait_for_selector("text=that step 7 has recorded")
        page.go_back()
        page.wait_for_selector("text=that step 42 has recorded")


def test_tokens_are_coloured_and_explained(chromium, run):
    with serving(run) as address, page_of(chromium, f"{address}#/run/demo/tokens/36/1") as page:
        page.wait_for_selector(".t")
        assert page.locator(".t").count() == 60
        token = page.locator(".t").nth(7)
        token.hover()
        assert token.get_attribute("class").split()[-1] == "at"
        figures = text(page, ".figures")
        assert [
            name for name in ("log-prob", "entropy", "ratio", "advantage", "pull", "state") if name in figures
        ] != []
        page.locator(".tokens").focus()
        page.keyboard.press("Home")
        assert "\n1, id " in text(page, ".figures")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "\n3, id " in text(page, ".figures")
        paler = (
            "() => [...document.querySelectorAll('.t')].map((t) => t.style.getPropertyValue('--heat')).join()"
        )
        before = page.evaluate(paler)
        page.get_by_text("Prompt", exact=True).click()
        assert text(page, "details.prompt pre") == "3142="
        page.get_by_label("entropy").check()
        assert page.evaluate(paler) != before
        assert "open" in text(page, ".colours")
        lines = "() => new Set([...document.querySelectorAll('.t')].map((t) => getComputedStyle(t).textDecoration)).size"
        assert page.evaluate(lines) == 5  # the states differ in more than colour
        page.get_by_label("latest").check()
        page.wait_for_function("() => location.hash.endsWith('/tokens/latest/1')")
        page.locator(".t").nth(2).click()
        page.wait_for_function(
            "() => location.hash.endsWith('/tokens/36/1')"
        )  # who looks at a token keeps it
        page.get_by_label("completion").select_option("3")
        page.wait_for_function("() => location.hash.endsWith('/tokens/36/3')")


def test_long_completions_come_in_parts(chromium, run):
    write_tokens(run, 36, num=1, length=5_000)
    with serving(run) as address, page_of(chromium, f"{address}#/run/demo/tokens/36/0") as page:
        page.wait_for_selector("text=tokens 1 to 2,048 of 5,000")
        assert page.locator(".t").count() == 2048
        page.get_by_role("button", name="after", exact=False).last.click()
        page.wait_for_selector("text=tokens 2,049 to 4,096 of 5,000")


def test_several_runs_share_charts(chromium, tmp_path):
    for name, loss in (("seed-1", "grpo"), ("seed-2", "dapo")):
        make_watched_run(tmp_path / "sweep" / name, 40, loss_type=loss)
    with serving(tmp_path) as address, page_of(chromium, address) as page:
        page.wait_for_selector("#plot-reward path.curve")
        assert page.locator("#plot-reward path.curve").count() == 2
        page.get_by_role("button", name="curves of sweep/seed-1").press("Space")
        wait(page, "() => document.querySelectorAll('#plot-reward path.curve').length === 1")
        page.get_by_role("button", name="curves of sweep/seed-1").press("Space")
        page.wait_for_selector("text=loss_type")
        page.get_by_role("link", name="sweep/seed-2").click()
        page.wait_for_selector("h1:has-text('sweep/seed-2')")
        assert page.url.endswith("#/run/sweep%2Fseed-2")
        page.get_by_label("Run", exact=True).select_option("sweep/seed-1")
        page.wait_for_selector("h1:has-text('sweep/seed-1')")
        page.go_back()
        page.wait_for_selector("h1:has-text('sweep/seed-2')")


def test_what_a_model_writes_stays_text(chromium, tmp_path):
    run = evil_run(tmp_path / "evil")
    write_tokens(run, 20)
    with serving(run) as address, page_of(chromium, f"{address}#/run/evil/completions/20/0/0") as page:
        page.on("dialog", lambda dialog: page.errors.append(f"a dialog: {dialog.message}"))
        page.wait_for_selector(".full pre")
        assert EVIL in page.locator(".full pre").all_inner_texts()
        assert page.locator(".full script, .full b").count() == 0
        page.goto(f"{address}#/run/evil/tokens/20/0")
        page.wait_for_selector(".t")
        assert page.locator("#view img").count() == 0
        page.goto(f"{address}#/run/evil")
        page.wait_for_selector(".plot path.curve")


@pytest.mark.parametrize("how", [PHONE, {"color_scheme": "dark"}], ids=["phone", "dark"])
def test_every_view_fits_a_phone_and_the_dark(chromium, run, tmp_path, how):
    make_watched_run(tmp_path / "a-run-with-a-long-name" / "and-a-long-variant-of-it", 12, loss_type="dapo")
    views = {
        "#/compare": ".plot path.curve",
        "#/run/demo": ".plot path.curve",
        "#/run/demo/completions/40/3/0": ".turn.trained",
        "#/run/demo/tokens/36/1": ".t",
    }
    with serving(tmp_path) as address, page_of(chromium, address, **how) as page:
        for view, selector in views.items():
            page.goto(f"{address}{view}")
            page.wait_for_selector(selector)
            width, body = page.evaluate(
                "() => [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
            )
            assert width <= page.viewport_size["width"], view
            assert body == ("rgb(17, 19, 23)" if how.get("color_scheme") == "dark" else "rgb(251, 251, 250)")
            # Nothing is cut off at the sides, but for what scrolls in itself.
            outside = page.evaluate(
                "() => [...document.querySelectorAll('#view *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
                " && !e.closest('.wide, pre, .excerpt, .unseen')).map((e) => e.outerHTML.slice(0, 80))"
            )
            assert outside == [], view
        if how is PHONE:
            page.locator(".t").nth(3).tap()
            assert page.locator(".figures").is_visible()


def test_a_server_that_is_gone_is_said_and_found_again(chromium, run):
    first = ExitStack()
    address = first.enter_context(serving(run))
    with first, page_of(chromium, address) as page:
        page.wait_for_selector("#plot-reward path.curve")
        first.close()
        page.wait_for_selector("text=The server doesn’t answer; trying again.")
        page.get_by_role("link", name="Completions").click()  # asked in vain
        with serving(run, port=int(address.split(":")[2].strip("/"))):
            page.wait_for_selector("text=that step 40 has recorded")
            page.wait_for_function("document.querySelector('#connection').textContent === ''")
            page.errors.clear()  # the browser's own lines on refused connections


def test_the_page_with_a_token(chromium, run):
    with (
        serving(run, token="s3cret") as address,
        page_of(chromium, f"{address}?token=s3cret#/run/demo/tokens") as page,
    ):
        page.wait_for_selector(".t")
        assert "token=" not in page.url
        assert page.url.startswith(f"{address}#/run/demo/tokens")


@pytest.mark.parametrize("wrong", ["console.error('wrong')", "fetch('http://192.0.2.1/').catch(() => 0)"])
def test_the_checks_of_a_page_can_fail(chromium, run, wrong):
    """An error on the console is noticed; and so is a request to elsewhere, which the page's policy refuses."""
    with serving(run) as address, pytest.raises(AssertionError), page_of(chromium, address) as page:
        page.evaluate(wrong)
