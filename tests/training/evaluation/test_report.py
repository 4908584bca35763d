"""The report of a run: what it shows, what it leaves out, and that nothing in it can act or be fetched."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, assert_nothing_overflows

from pipeline import errors
from pipeline.errors import InputError
from training.evaluation.curves import TaskCurves
from training.evaluation.metrics import evaluate, evaluate_with_curves, oracle_metrics
from training.evaluation.report import headline, write_report
from training.evaluation.report_charts import (
    LOSS_POINTS,
    calibration_chart,
    histogram_chart,
    roc_chart,
    validation_charts,
)
from training.evaluation.run_files import read_log, read_metrics, read_predictions, read_validations
from training.evaluation.sorted_scores import SortedScores

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and insists that every element is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def a_run(folder: Path, rows=3000, columns=("p_ctr", "p_cvr", "p_ctcvr"), truth=True, steps=50) -> Path:
    rng = np.random.default_rng(0)
    true = {"p_ctr": rng.beta(2, 6, rows), "p_cvr": rng.beta(2, 5, rows)}
    click = rng.random(rows) < true["p_ctr"]
    model = {name: np.clip(value * rng.lognormal(0, 0.4, rows), 1e-6, 0.99) for name, value in true.items()}
    model["p_ctcvr"] = model["p_ctr"] * model["p_cvr"]
    predictions = {
        "impression_id": np.arange(rows),
        "group_id": rng.integers(0, 60, rows),
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(rows) < true["p_cvr"])).astype(np.int8),
        **{name: model[name].astype(np.float32) for name in columns},
    }
    metrics = evaluate(predictions) | (oracle_metrics(predictions, true) if truth else {})
    (folder / "predictions" / "test").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    written = {**predictions, **({f"true_{name}": value for name, value in true.items()} if truth else {})}
    table = pa.table(written).append_column("context_id", pa.array(["<c>"] * rows))
    for number, begin in enumerate(range(0, rows, rows // 2)):
        pq.write_table(table.slice(begin, rows // 2), folder / f"predictions/test/part-{number:05d}.parquet")
    entries = [{"step": step, "loss": 1 / step, "loss_click": 0.7 / step} for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "config.yaml").write_text("data: out\nnote: <script>alert('x')</script> & more\n")
    return folder


def report_of(run: Path) -> Path:
    columns, saved = read_predictions(run, "test"), {"split": "test", **read_metrics(run, "test")}
    write_report(run, saved, evaluate_with_curves(columns, columns.true_columns()).curves, run / "report.html")
    return run / "report.html"


def test_the_report_shows_every_part_of_a_run(tmp_path):
    path = report_of(a_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text())
    text = " ".join(page.texts)
    for wanted in ("Result", "oracle AUC", "share of the attainable AUC", "Funnel", "3,000", "Loss", "CTR · ROC", "CVR · calibration",
                   "CTCVR · predictions", "oracle (true probabilities)", "CVR, all impressions", "Configuration"):  # fmt: skip
        assert wanted in text, wanted
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{metrics['ctcvr_auc']:.4f}" in text
    assert page.tags.count("svg") == 2 + 3 * 3


def test_the_report_fetches_nothing_runs_nothing_and_is_small(tmp_path):
    html = report_of(a_run(tmp_path / "run", steps=20_000)).read_text()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name == "src" or name.startswith("on")]
    ids = {value for name, value in page.attributes if name == "id"}
    links = [value for name, value in page.attributes if name == "href"]
    assert len(links) > 3
    assert {f"#{place}" for place in ids} >= set(links)  # within the page, and each leads somewhere
    assert not re.search(r"https?://|url\(|@import", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert len(html) < 300_000


def test_signs_of_a_bad_model_come_first_and_calibration_is_said_in_words(tmp_path):
    run = a_run(tmp_path / "run")
    assert "Signs that this model is no good" not in report_of(run).read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    alerts = [{"kind": "one_value", "of": "cvr", "text": "p_cvr is nearly one value <for> all."}]
    in_words = ["p_ctr is too high: 4 clicks were observed where 9 were predicted."]
    (run / "metrics.json").write_text(json.dumps({**metrics, "alerts": alerts, "calibration_in_words": in_words}))
    html = report_of(run).read_text()
    text = " ".join(Page(html).texts)
    assert text.index("Signs that this model is no good") < text.index("p_cvr is nearly one value <for> all.")
    assert text.index("p_cvr is nearly one value <for> all.") < text.index("Result")
    assert in_words[0] in text
    assert "calibration_in_words" not in text  # it is no figure


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_nothing_overflows(tmp_path):
    assert_nothing_overflows(report_of(a_run(tmp_path / "run")), tmp_path)


def test_text_from_outside_is_escaped(tmp_path):
    run = a_run(tmp_path / "<b>&run")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "<i>odd": None}))
    html = report_of(run).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in html
    assert "&lt;b&gt;&amp;run" in html
    assert "&lt;i&gt;odd" in html


def test_every_chart_has_a_description_for_those_who_do_not_see_it(tmp_path):
    html = report_of(a_run(tmp_path / "run")).read_text()
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', html)
    assert len(labels) == html.count("<svg") == len(set(labels))


def test_a_run_without_truth_log_or_configuration_is_reported_without_them(tmp_path):
    run = a_run(tmp_path / "run", truth=False)
    (run / "log.jsonl").unlink()
    (run / "config.yaml").unlink()
    text = " ".join(Page(report_of(run).read_text()).texts)
    assert "no logged steps" in text
    for absent in ("oracle AUC", "true probabilities", "Configuration"):
        assert absent not in text


def test_a_model_of_cvr_alone_gets_the_cvr_charts_alone(tmp_path):
    page = Page(report_of(a_run(tmp_path / "run", columns=("p_cvr",))).read_text())
    text = " ".join(page.texts)
    assert "CVR · ROC" in text
    assert "CTR · ROC" not in text
    assert page.tags.count("svg") == 2 + 3


def test_metrics_of_the_split_come_before_those_of_another(tmp_path):
    run = a_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.test.json").write_text(json.dumps({**metrics, "ctr_auc": 0.123456}))
    assert "0.1235" in report_of(run).read_text()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "metrics.json").write_text('{"split": "train"}'), "has no metrics of split=test"),
        (lambda run: (run / "metrics.json").unlink(), "has no metrics of split=test"),
        (lambda run: (run / "metrics.json").write_text("{"), "is not JSON"),
        (lambda run: [file.unlink() for file in run.glob("predictions/test/*")], "has no predictions of split=test"),
        (lambda run: next(run.glob("predictions/test/*")).write_bytes(b"PAR1 no"), "cannot be read"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_the_command_that_mends_it(tmp_path, damage, said):
    run = a_run(tmp_path / "run")
    damage(run)
    with pytest.raises(InputError, match=said) as caught:
        report_of(run)
    assert f"python -m jobs.evaluate run={run} split=test" in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_step_logged_twice_counts_by_its_later_line_and_a_torn_line_is_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 2, "loss": 9}\n{"step": 1, "loss": 5}\n{"step": 2, "loss": 4}\n{"event": "saved"}\n{"step": 3, "lo'
    )
    entries, num_broken = read_log(path)
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(1, 5), (2, 4)]
    assert num_broken == 1


def test_a_long_loss_curve_is_drawn_through_means_of_neighbouring_steps(tmp_path):
    html = report_of(a_run(tmp_path / "run", steps=10 * LOSS_POINTS)).read_text()
    curve = re.search(r'<path class="line line c0" d="M([^"]+)"', html).group(1)
    assert len(curve.split("L")) == LOSS_POINTS


def test_undefined_figures_show_as_a_dash_and_their_charts_are_left_out():
    cells = headline({"ctr_auc": None, "ctr_log_loss": 0.1}).rows[0].cells
    assert [cell.text for cell in cells] == [None, "0.1000"]
    curves = TaskCurves.of(SortedScores.of(np.zeros(10, bool), np.linspace(0.1, 0.9, 10)))
    assert roc_chart("CTR", curves.roc, None) is None
    assert calibration_chart("CTR", curves.calibration) is None
    assert histogram_chart("CTR", curves.histogram) is not None  # which needs no second class


def test_the_page_says_what_it_is_about_and_each_alert_leads_to_its_section(tmp_path):
    run = a_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    rate = {"verdict": "too high", "ratio": 0.8, "low": 0.7, "high": 0.9}
    metrics |= {
        "num_conversions": 99,
        "observed_rates": {"ctr": [rate], "cvr": [rate | {"verdict": "right"}]},
        "alerts": [
            {"kind": "one_value", "of": "cvr", "text": "p_cvr is one value."},
            {"kind": "diverged", "of": "click", "text": "The loss diverged."},
        ],
        "provenance": {"checkpoint": "step-7", "chosen_as": "best", "weights": "average", "data": "s3://k:pw@b/<d>",
                       "settings_xxh3": "abc1", "manifest_xxh3": "def2", "version": "9.9"},
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(metrics))
    html = report_of(run).read_text()
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>", html))
    assert facts["run"] == str(run.resolve())
    assert (facts["split"], facts["checkpoint"]) == ("test", "step-7 · best · average")
    assert facts["dataset"] == "s3://***@b/&lt;d&gt;"
    assert (facts["settings"], facts["manifest"]) == ("abc1", "def2")
    assert facts["evaluated by"] == "entirespace 9.9"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["written"])
    alerts = re.findall(r'<p class="(\w+)"><a href="#([\w-]+)">([^<]+)</a></p>', html)
    assert alerts == [
        ("bad", "task-cvr", "p_cvr is one value."),
        ("bad", "training", "The loss diverged."),
        ("fair", "task-ctr", "Calibration: p_ctr is too high: 0.800 times as many clicks were observed as predicted (0.700 to 0.900)."),
        ("fair", "result", "Few positives: 99 conversions decide the figures of cvr, so they are uncertain."),
        ("fair", "result", "Few positives: 99 conversions decide the figures of ctcvr, so they are uncertain."),
    ]  # fmt: skip
    assert "No alert: " not in html


def test_a_run_without_a_doubt_says_so(tmp_path):
    assert "No alert: " in report_of(a_run(tmp_path / "run")).read_text()


def test_each_task_stands_above_one_probability_for_all_with_its_intervals(tmp_path):
    metrics = json.loads((a_run(tmp_path / "run") / "metrics.json").read_text())
    found = headline(metrics, {"ctr_auc": [0.61, 0.69], "cvr_log_loss": [0.5, 0.6]})
    kinds = [(row.title.split()[0], row.is_baseline) for row in found.rows]
    assert kinds == [("CTR", False), ("always", True), ("CVR", False), ("always", True), ("CTCVR", False), ("always", True), ("CVR,", False)]  # fmt: skip
    by_column = [dict(zip(found.columns, row.cells, strict=True)) for row in found.rows]
    assert by_column[0]["AUC"].interval == "0.6100 to 0.6900"
    assert by_column[2]["log loss"].interval == "0.5000 to 0.6000"
    rate = metrics["num_conversions"] / metrics["num_clicks"]
    assert by_column[3]["AUC"].text == "0.5000"
    assert by_column[3]["log loss"].text == f"{-rate * np.log(rate) - (1 - rate) * np.log(1 - rate):.4f}"
    assert by_column[3]["oracle AUC"].text is None


def test_validations_are_drawn_against_the_step(tmp_path):
    run = a_run(tmp_path / "run")
    with (run / "log.jsonl").open("a") as log:
        for step, auc in ((10, 0.6), (20, None), (30, 0.7), (30, 0.71)):
            log.write(json.dumps({"step": step, "validation_loss": 0.4, "validation_ctr_auc": auc}) + "\n")
    assert read_validations(run / "log.jsonl") == [
        {"step": 10, "validation_loss": 0.4, "validation_ctr_auc": 0.6},
        {"step": 20, "validation_loss": 0.4},
        {"step": 30, "validation_loss": 0.4, "validation_ctr_auc": 0.71},
    ]
    loss, auc = validation_charts(read_validations(run / "log.jsonl"))
    assert (len(loss.lines[0].points), len(auc.lines[0].points), auc.lines[0].name) == (3, 2, "ctr")
    assert validation_charts(read_validations(run / "log.jsonl")[:1]) == []
    text = " ".join(Page(report_of(run).read_text()).texts)
    assert "Validation loss" in text
    assert "Validation AUC" in text


def test_a_run_whose_folder_stands_in_for_an_address_is_named_by_the_address(tmp_path, monkeypatch):
    run = a_run(tmp_path / "copy")
    monkeypatch.setattr(errors, "_SHOWN_AS", {})
    errors.show_as(str(run.resolve()), "s3://bucket/runs/esmm")
    html = report_of(run).read_text()
    assert "<dt>run</dt><dd>s3://bucket/runs/esmm</dd>" in html
    assert "<h1>esmm</h1>" in html
    assert str(tmp_path) not in html
