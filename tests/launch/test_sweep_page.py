"""The page: nothing in it acts but its own script, and it works in a browser for one trial and for two hundred."""

import html.parser
import json
import math
import random
import re

import chromium
import pytest
from sweep_process import evaluations, made_by_hand

from launch.sweep.ledger import FAILED, FINISHED
from launch.sweep.metrics import Objective
from launch.sweep.results import report

NASTY = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'> & \"'<!--DATA-->"
in_browser = pytest.mark.skipif(
    chromium.EXECUTABLE is None, reason="Chromium is not installed (apt-get install chromium)"
)


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.tags and self.tags[-1] == "script" and self.scripts and not self.scripts[-1]:
            self.scripts[-1] = text


def page(folder, trials, wanted=None):
    """Makes a sweep by hand and its page; returns the path of the page."""
    report(str(folder), made_by_hand(folder, trials), wanted or {})
    return folder / "report.html"


def many(count, seed=0):
    """Returns trials with curves, of which some failed and some diverged."""
    rng = random.Random(seed)
    trials = []
    for index in range(count):
        rate, dropout = 10 ** rng.uniform(-6, -2), rng.uniform(0, 0.5)
        best = 1 / (1 + (math.log10(rate) + 4) ** 2) - dropout**2
        accuracy = [best * (1 - math.exp(-step / 4)) + rng.gauss(0, 0.01) for step in range(1, 15)]
        loss = [
            "NaN" if index % 17 == 3 and step > 6 else 1 / (0.1 + max(0, value)) for step, value in enumerate(accuracy)
        ]
        parameters = [
            ("learning_rate", f"{rate:.4g}"),
            ("encoder.dropout", f"{dropout:.3f}"),
            ("run.optimizer", rng.choice(["@adamw()", "@lamb()"])),
            ("seed", str(index)),
        ]
        state = FAILED if index % 13 == 5 else FINISHED
        trials.append((parameters, state, evaluations(accuracy=accuracy, loss=loss)))
    return trials


def test_what_people_write_is_shown_and_never_acts(tmp_path):
    name = json.dumps(NASTY)
    trials = [([("data", name)], FINISHED, evaluations(accuracy=[0.5])), ([("data", "1")], FAILED, [])]
    path = page(tmp_path / "a<b>&c", trials)
    elements = Elements(path.read_text())
    assert elements.tags.count("script") == 2 and "img" not in elements.tags
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    data = json.loads(elements.scripts[0])
    assert data["trials"][0]["texts"] == [name]
    assert "a&lt;b&gt;&amp;c" in path.read_text()


def test_page_needs_nothing_but_itself(tmp_path):
    text = page(tmp_path, many(3)).read_text()
    elements = Elements(text)
    addresses = [value for _, name, value in elements.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert addresses == ["data:,"]
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)", text)
    policy = next(
        value for tag, name, value in elements.attributes if tag == "meta" and name == "content" and "default" in value
    )
    assert policy.startswith("default-src 'none'")


def test_data_of_the_page_is_what_the_trials_logged(tmp_path):
    records = evaluations(accuracy=[0.25, 0.5], loss=[2.0, "NaN"])
    records += [
        {"step": step, "kind": "train", "loss": 1.0 / step, "examples_per_second": 7.0} for step in range(1, 1001)
    ]
    trials = [([("rate", "1e-5"), ("use", "True")], FINISHED, records), ([("rate", "3e-5")], FAILED, records[:1])]
    data = json.loads(Elements(page(tmp_path, trials).read_text()).scripts[0])
    assert data["metric"] == {"label": "last eval accuracy", "less": False, "curve": "eval accuracy"}
    assert data["curves"] == ["eval accuracy", "eval loss", "train loss"]
    assert data["parameters"] == [
        {"name": "rate", "isNumber": True, "texts": ["1e-5", "3e-5"]},
        {"name": "use", "isNumber": False, "texts": ["True"]},
    ]
    first, second = data["trials"]
    assert (first["numbers"], first["texts"], first["value"]) == ([1e-5, None], ["1e-5", "True"], 0.5)
    assert (second["texts"], second["value"], second["state"]) == (["3e-5", None], None, "failed")
    assert first["curves"][:2] == [[[10, 20], [0.25, 0.5]], [[10, 20], [2.0, None]]]
    steps, values = first["curves"][2]
    assert len(steps) == 240 and (steps[0], steps[-1], values[-1]) == (1, 1000, 0.001)


def test_page_of_two_hundred_trials_with_many_metrics_stays_small(tmp_path):
    rng = random.Random(0)
    names = [f"metric_{index}" for index in range(12)]
    records = [evaluations(**{name: [rng.random() for _ in range(300)] for name in names}) for _ in range(200)]
    path = page(tmp_path, [([("seed", str(index))], FINISHED, own) for index, own in enumerate(records)])
    assert path.stat().st_size < 12e6


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", [1, 2, 200])
def test_page_opens_in_a_browser_without_complaint(tmp_path, count, dark):
    path = page(tmp_path, many(count))
    with chromium.Page(path, dark=dark) as browser:
        browser.screenshot(tmp_path / "page.png")
        for chart in ("parameters", "curves"):
            assert browser.evaluate(f"document.querySelectorAll('#{chart} path.trial').length") == count
            drawn = browser.evaluate(
                f"[...document.querySelectorAll('#{chart} path')].map(p => p.getAttribute('d')).join()"
            )
            assert drawn and "NaN" not in drawn and "undefined" not in drawn and "Infinity" not in drawn
        assert browser.evaluate("document.querySelectorAll('#trials tbody tr').length") == count
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.requests == [f"file://{path}"]
        assert browser.complaints == []
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@in_browser
def test_page_without_any_result_and_with_nasty_names_opens(tmp_path):
    failed = page(tmp_path / "failed", [([("seed", "1")], FAILED, [])])
    nasty = page(
        tmp_path / "nasty", [([("data", json.dumps(NASTY)), ("b", "1")], FINISHED, evaluations(accuracy=[0.5]))]
    )
    for path in (failed, nasty):
        with chromium.Page(path) as browser:
            assert "owned" not in browser.evaluate("document.title")
            assert browser.complaints == [] and len(browser.requests) == 1
            assert browser.evaluate("document.querySelectorAll('#parameters svg').length") == 1


@in_browser
def test_one_trial_that_diverged_does_not_make_the_others_look_alike(tmp_path):
    losses = [1.0, 1.1, 1.2, 1.3, 1.4, 1e6]
    path = page(
        tmp_path, [([("seed", str(n))], FINISHED, evaluations(loss=[2.0, loss])) for n, loss in enumerate(losses)]
    )
    with chromium.Page(path) as browser:
        ticks = browser.evaluate(
            "[...document.querySelectorAll('#parameters text.tick')].map(t => t.firstChild.textContent)"
        )
        assert "≥ 1.448" in ticks
        paths = browser.evaluate("[...document.querySelectorAll('#curves path.trial')].map(p => p.getAttribute('d'))")
        ends = sorted(float(path.rpartition(",")[2]) for path in paths)
        assert ends[0] < 0 and ends[-1] - ends[1] > 50  # outside of the chart, and apart from each other
        browser.evaluate("document.getElementById('outliers').click()")
        paths = browser.evaluate("[...document.querySelectorAll('#curves path.trial')].map(p => p.getAttribute('d'))")
        assert min(float(path.rpartition(",")[2]) for path in paths) > 0
        assert browser.complaints == []


@in_browser
def test_lines_are_marked_brushed_sorted_and_let_go(tmp_path):
    trials = [
        ([("rate", str(rate)), ("kind", f"'{kind}'")], FINISHED, evaluations(accuracy=[rate / 20, rate / 10]))
        for rate, kind in ((1, "a"), (2, "b"), (3, "a"), (4, "b"))
    ]
    path = page(tmp_path, trials)
    hot = "[...document.querySelectorAll('#trials tr.hot')].map(row => Number(row.dataset.trials)).sort()"
    out = "[...document.querySelectorAll('#trials tr.out')].map(row => Number(row.dataset.trials)).sort()"
    order = "[...document.querySelectorAll('#trials tbody tr')].map(row => Number(row.dataset.trials))"
    with chromium.Page(path, height=2000) as browser:  # nothing scrolls under the mouse
        handles = "[...document.querySelectorAll('#parameters .handle')].map(h => h.getBoundingClientRect())"
        axis = json.loads(browser.evaluate(f"JSON.stringify({handles})"))
        x, top, bottom = axis[0]["x"] + axis[0]["width"] / 2, axis[0]["y"], axis[0]["y"] + axis[0]["height"]
        # The line of the best trial begins at the top of its axis.
        browser.mouse("mouseMoved", x + 4, top + 18)
        assert browser.evaluate(hot) == [4]
        assert "trial 4: last eval accuracy 0.4" in browser.evaluate("document.getElementById('tip').textContent")
        # Only the upper half of the first axis: rates 3 and 4.
        for kind, y in (("Moved", top + 1), ("Pressed", top + 1), ("Moved", top + 60), ("Moved", (top + bottom) / 2)):
            browser.mouse(f"mouse{kind}", x, y)
        browser.mouse("mouseReleased", x, (top + bottom) / 2)
        assert browser.evaluate(out) == [1, 2]
        assert browser.evaluate("document.getElementById('clear').disabled") is False
        browser.evaluate("document.getElementById('clear').click()")
        assert browser.evaluate(out) == []
        # A row that has the focus is marked; Enter keeps it so.
        browser.evaluate("document.querySelector('#trials tbody tr').focus()")
        assert browser.evaluate(hot) == [1]
        browser.evaluate("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
        browser.evaluate("document.activeElement.blur()")
        assert browser.evaluate(hot) == [1]
        browser.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))")
        assert browser.evaluate(hot) == []
        # The column with the metric, falling.
        head = "document.querySelectorAll('#trials th')[4]"
        browser.evaluate(f"{head}.click(); {head}.click()")
        assert browser.evaluate(order) == [4, 3, 2, 1]
        assert browser.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"
        assert browser.complaints == []


def test_objective_in_words_names_the_order():
    assert str(Objective("loss")) == "last eval loss, least first"
