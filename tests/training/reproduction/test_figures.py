"""The papers' figures: their points, charts and gains against NumPy and SciPy."""

from pathlib import Path

import numpy as np
from fake_jobs import FakeJobs, settings_of
from scipy.stats import ttest_rel

from training.reproduction.figures import PAPER_FIGURES, varied
from training.reproduction.page import FilledRow, FilledTable, write_table
from training.reproduction.run import reproduce
from training.reproduction.tables import PAPER_TABLES
from training.reproduction.trials import Trials
from training.run.systems import ESM2, ESMM, SYSTEMS, system_named, systems_of


def test_every_point_of_a_figure_has_runs_of_its_own_and_the_usual_ones_share_those_of_the_tables(
    data: Path, tmp_path: Path
) -> None:
    trials = Trials(settings_of(data, tmp_path / "out"), str(data))
    for table in PAPER_FIGURES.values():
        folders = {trials.tested(row.system, (), 1).folder for row in table.rows if row.data == "data"}
        usual = {
            trials.tested(row.system, (), 1).folder for name in ("esmm2", "esm2_3") for row in PAPER_TABLES[name].rows
        }
        in_tables = [row for row in table.rows if row.data == "data" and row.system in SYSTEMS]
        assert len(folders) == len({row.system.name for row in table.rows if row.data == "data"})
        assert len(folders & usual) == len({row.system.name for row in in_tables})
    assert len(PAPER_FIGURES["esmm_fig3"].rows) == 6 * 8


def test_a_share_is_trained_with_its_own_ctr_network_and_the_values_of_the_whole_log(
    data: Path, tmp_path: Path, fake: FakeJobs
) -> None:
    settings = settings_of(
        data, tmp_path / "out", "table=esmm_fig3", "seeds=1", "systems=['AMAN, 10%','BASE, 10%','AMAN, 100%']"
    )
    reproduce(settings)
    trained = [command for command in fake.commands if command[0] == "jobs.train"]
    searched = [command for command in trained if "model=aman" in command and "plan.share=0.1" not in command]
    assert len(searched) == 4, "the search is that of Table 2"
    (sampled,) = [command for command in trained if "model=aman" in command and "plan.share=0.1" in command]
    assert "model.sampling.unclicked=0.5" in sampled
    ctr = {word for command in fake.commands for word in command if word.startswith("ctr_run=")}
    assert {Path(word.removeprefix("ctr_run=")).parts[-4] for word in ctr} == {"esmm-ctr", "esmm-ctr-plan-share-0-1"}
    assert sum("model=ctr" in command and "plan.share=0.1" in command for command in trained) == 1


def test_a_figure_is_drawn_with_the_mean_of_each_series_and_a_point_for_each_seed(tmp_path: Path) -> None:
    table = PAPER_FIGURES["esmm_fig3"]
    random = np.random.default_rng(6)
    rows, auc_by_label = [], {}
    for row in table.rows:
        auc_by_label[row.label] = random.uniform(0.5, 0.7, 3)
        metrics = tuple(
            {"cvr_auc": auc, "ctcvr_independent_auc": auc, "alerts": [], "num_impressions": 9, "num_clicks": 3}
            | {"num_conversions": 1}
            for auc in auc_by_label[row.label]
        )
        rows.append(FilledRow(row, (), ((),), metrics, ({"wall_s": 1.0, "cpu_s": 1.0},) * 3))
    filled = FilledTable(table, rows, "DATA")
    charts = filled.charts()
    assert [found.title for found in charts] == [
        f"{task} AUC · percent of the train split" for task in ("CVR", "CTCVR")
    ]
    for found in charts:
        assert [line.name for line in found.lines if line.name] == [system.name for system in systems_of(ESMM)]
        assert [len(line.points) for line in found.lines if not line.name] == [6 * 3] * 8
    differences = filled.sections()[1]
    assert len(differences.rows) == 7 * 6, "BASE is compared with itself nowhere"
    at = next(number for number, cells in enumerate(differences.rows) if cells[0] == "ESMM, 5%")
    wanted = 100 * (auc_by_label["ESMM, 5%"] - auc_by_label["BASE, 5%"]).mean()
    assert differences.rows[at][1].startswith(f"{wanted:+.2f} (p ")
    page = write_table(filled, tmp_path, "esmm_fig3")[1].read_text()
    assert page.count("<svg") == 2


def test_gains_by_purchases_are_those_of_the_parts_and_stand_beside_the_papers(tmp_path: Path) -> None:
    table = PAPER_FIGURES["esm2_fig7"]
    parts = [column.part for column in table.columns]
    random = np.random.default_rng(7)
    auc = {row.label: random.uniform(0.5, 0.7, (3, 8)) for row in table.rows}
    rows = []
    for row in table.rows:
        metrics = []
        for seed in range(3):
            of_part = [
                {"value": part, "cvr_auc": auc[row.label][seed, number], "ctcvr_auc": auc[row.label][seed, number + 4]}
                for number, part in enumerate(parts[:4])
            ]
            found = {"slices": {"user_purchases": of_part[::-1]}, "alerts": [], "num_impressions": 9}
            metrics.append(found | {"num_clicks": 3, "num_conversions": 1})
        rows.append(FilledRow(row, (), ((),), tuple(metrics), ({"wall_s": 1.0, "cpu_s": 1.0},) * 3))
    gains = FilledTable(table, rows, "DATA").sections()[1]
    assert [cells[0] for cells in gains.rows] == ["ESM2"]
    for number, cell in enumerate(gains.rows[0][1:]):
        wanted = 100 * (auc["ESM2"][:, number] / auc["ESMM"][:, number] - 1)
        p = ttest_rel(wanted, np.zeros(3)).pvalue
        assert cell.startswith(f"{wanted.mean():+.2f} (p {p:.2g}")
        assert cell.endswith(f"paper {table.relative[0][number]:+.2f}")
    trials = Trials(settings_of(tmp_path, tmp_path / "out"), "DATA")
    tested = trials.tested(table.rows[0].system, (), 1, slices=table.slices)
    assert tested.stages[-1].words[-1] == "slices=[user_purchases]"
    assert tested.stages[-1].name == "test.user_purchases.json"


def test_a_varied_system_gives_its_settings_to_its_ctr_network() -> None:
    base = varied(system_named(ESMM, "BASE"), "plan.share=0.5")
    assert base.settings[-1] == base.ctr[-1] == "plan.share=0.5"
    assert varied(system_named(ESM2, "ESM2"), "plan.share=0.5").ctr == ()
