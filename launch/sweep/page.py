"""`report.html`: one page that needs nothing but itself, with the parameters, the learning curves and the leaderboard.

The tables are written here and can be read without a script. The charts are drawn by the script in `report.html` beside this
module, from data that the page carries as JSON.
"""

import html
import json
import math
import os
import re
import time

from launch.background import duration
from launch.sweep.display import counts_text, number_text
from launch.sweep.leaderboard import parameter_names
from launch.sweep.ledger import FAILED, FINISHED
from launch.sweep.metrics import EVAL, TRAIN
from launch.sweep.space import is_seed
from launch.sweep.values import number

_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
_MOST_POINTS_OF_A_CURVE = 240  # of a chart some hundred pixels wide
_MOST_POINTS = 300_000  # in a page: about 6 MB


def make_page(title, runs, rows, objective):
    """Returns the page as a text.

    Args:
        title: the folder of the sweep.
        runs: list of `Run`, read up to their ends.
        rows: of `launch.sweep.leaderboard.leaderboard`.
        objective: `Objective`, or None if nothing was logged.
    """
    names = parameter_names(runs)
    parts = {
        "TITLE": html.escape(f"Sweep {title}"),
        "SUMMARY": _summary(runs, rows, objective),
        "LEADERBOARD": _leaderboard(rows, [name for name in names if not is_seed(name)], objective),
        "TRIALS": _trials(runs, names, objective),
        "DATA": _script_json(_data(runs, names, objective)),
    }
    with open(_TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    # In one pass: what is put in is never looked at again.
    return re.sub(r"<!--([A-Z]+)-->", lambda match: parts[match[1]], template)


def _script_json(data):
    """Returns JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(runs, names, objective):
    """Returns what the script draws, as JSON can hold it: None stands for numbers that are not finite or not there."""
    curves = _curve_names(runs, objective)
    most = min(_MOST_POINTS_OF_A_CURVE, max(8, _MOST_POINTS // max(1, len(runs) * len(curves))))
    metric = None
    if objective is not None:
        label = f"{objective.take} {objective.kind} {objective.metric}"
        metric = {"label": label, "less": objective.less, "curve": f"{objective.kind} {objective.metric}"}
    return {
        "metric": metric,
        "parameters": [_parameter(name, runs) for name in names],
        "curves": [f"{kind} {name}" for kind, name in curves],
        "trials": [_trial(run, names, curves, objective, most) for run in runs],
    }


def _curve_names(runs, objective):
    """Returns the (kind, metric) that have curves, that by which trials are compared first."""
    first = [(objective.kind, objective.metric)] if objective else []
    rest = [(kind, name) for kind in (EVAL, TRAIN) for run in runs for name in run.metrics.names(kind)]
    return list(dict.fromkeys(first + rest))


def _parameter(name, runs):
    texts = list({dict(run.trial.parameters)[name]: None for run in runs if name in dict(run.trial.parameters)})
    is_number = all(number(text) is not None and math.isfinite(number(text)) for text in texts)
    return {"name": name, "isNumber": is_number, "texts": texts}


def _trial(run, names, curves, objective, most):
    trial, parameters = run.trial, dict(run.trial.parameters)
    point = objective.of(run.metrics) if objective else None
    has_value = point is not None and trial.state == FINISHED
    return {
        "number": trial.number,
        "name": trial.name,
        "state": trial.state,
        "texts": [parameters.get(name) for name in names],
        "numbers": [_finite(number(parameters[name])) if name in parameters else None for name in names],
        "value": _finite(point[1]) if has_value else None,
        "valueText": number_text(point[1]) if has_value else "",
        "curves": [_curve(run.metrics.curve(kind, name), most) for kind, name in curves],
    }


def _curve(points, most):
    """Returns [steps, values] of a curve, thinned out evenly where it has too many points; its last one stays."""
    if len(points) > most:
        points = [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]
    return [[step for step, _ in points], [_finite(value) for _, value in points]]


def _finite(value):
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")


def _summary(runs, rows, objective):
    """Returns the lines at the head: what won, by what, and how many trials there are."""
    cells = []
    if rows and rows[0].rank is not None:
        best = rows[0]
        spread = "" if best.deviation is None else f" ± {best.deviation:.2g}"
        over = f"mean of {len(best.values)} trials" if len(best.values) > 1 else f"trial {best.best}"
        parameters = ", ".join(f"{name} = {text}" for name, text in best.parameters) or "only the seed varies"
        what = f"{objective.take} {objective.kind} {objective.metric}, {over}"
        cells.append((f"best {what}", f"{number_text(best.mean)}{spread}", parameters))
    counts = counts_text([run.trial for run in runs])
    cells.append(("trials", str(len(runs)), counts))
    seconds = sum(run.trial.seconds for run in runs)
    cells.append(("time in trials", duration(seconds), f"written {time.strftime('%Y-%m-%d %H:%M')}"))
    return "".join(
        f'<div class="tile"><div class="label">{html.escape(label)}</div><div class="figure">{html.escape(figure)}</div>'
        f'<div class="note">{html.escape(note)}</div></div>'
        for label, figure, note in cells
    )


def _leaderboard(rows, names, objective):
    metric = f"{objective.kind} {objective.metric}" if objective else "metric"
    heads = ["rank", *names, f"mean {metric}", "standard deviation", "finished", "best trial"]
    numeric = {0, len(names) + 1, len(names) + 2, len(names) + 3, len(names) + 4}
    body, top = [], rows[0].mean if rows and rows[0].rank is not None else None
    for row in rows:
        parameters = dict(row.parameters)
        cells = [
            "" if row.rank is None else str(row.rank),
            *(parameters.get(name, "") for name in names),
            "" if row.mean is None else (number_text(row.mean), row.mean),
            "" if row.deviation is None else (number_text(row.deviation), row.deviation),
            f"{len(row.values)} of {len(row.trials)}",
            "" if row.best is None else str(row.best),
        ]
        is_best = row.mean is not None and row.mean == top
        body.append((cells, row.trials, "best" if is_best else ""))
    return _table("leaderboard", heads, numeric, body)


def _trials(runs, names, objective):
    metric = f"{objective.take} {objective.kind} {objective.metric}" if objective else "metric"
    heads = ["trial", "state", *names, metric, "at step", "steps", "time", "message"]
    numeric = {0, *range(len(names) + 2, len(names) + 6)}
    body = []
    for run in runs:
        trial, parameters = run.trial, dict(run.trial.parameters)
        step, total = run.step
        point = objective.of(run.metrics) if objective else None
        cells = [
            str(trial.number),
            trial.state,
            *(parameters.get(name, "") for name in names),
            (number_text(point[1]), point[1]) if point else "",
            f"{point[0]:,}" if point else "",
            f"{step:,} of {total:,}" if total else "",
            (duration(trial.seconds), trial.seconds) if trial.seconds else "",
            (trial.error or "") if trial.state == FAILED else "",
        ]
        body.append((cells, (trial.number,), f"state-{trial.state}"))
    if not any(cells[-1] for cells, *_ in body):
        heads.pop()
    return _table("trials", heads, numeric, body)


def _table(name, heads, numeric, body):
    """Returns a table as HTML.

    Args:
        name: of its element.
        heads: texts of the columns.
        numeric: numbers of the columns that are set to the right.
        body: list of (cells, numbers of the trials that the row is about, its class); a cell is a text, or (a text, the
            number to sort by).
    """

    def kind(index):
        return ' class="number"' if index in numeric else ' class="message"' if heads[index] == "message" else ""

    def cell(index, content):
        text, value = content if isinstance(content, tuple) else (content, None)
        sort = "" if value is None else f' data-value="{value!r}"'
        return f"<td{kind(index)}{sort}>{html.escape(text)}</td>"

    head = "".join(
        f'<th scope="col"{kind(i)}><button type="button">{html.escape(text)}</button></th>'
        for i, text in enumerate(heads)
    )
    lines = []
    for cells, trials, style in body:
        own = "".join(cell(i, content) for i, content in enumerate(cells[: len(heads)]))
        lines.append(f'<tr tabindex="0" class="{style}" data-trials="{" ".join(map(str, trials))}">{own}</tr>')
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
