import json

import pyarrow as pa

from pipeline.audit.tally import Tally
from pipeline.dataset.manifest import RowGroup
from pipeline.passes.reports import DataReport, QuarantineReport, report_row, reports_of
from pipeline.storage.staged_file import StagedFile


def test_reports_come_back_from_their_rows_as_they_were_and_quarantine_files_by_number() -> None:
    tally = Tally()
    tally.add(0, "impressions", "written", 3)
    tally.note_first("bad_label", 1, 70)
    file = StagedFile("/scratch/a", 5, "0" * 16, "train/part-00001-0.parquet")
    groups = (RowGroup(2, 3, 1, 0, None), RowGroup(1, 1, 0, 0, 1))
    data = [
        DataReport("train", 1, file, groups, tally, {"sizes": [[1, 2]]}, "rejects.npy", (0, 4)),
        DataReport("test", 0, None, (), Tally(), {"sizes": []}, "", ()),
    ]
    late = QuarantineReport(2, file, 4, {"bad_label": [["log.csv", 70, "text…"]]})
    early = QuarantineReport(0, file, 1, {})
    rows = pa.Table.from_batches([report_row(report) for report in (late, *data, early)])
    found, quarantine = reports_of(rows)
    assert quarantine == [early, late]
    assert [json.dumps(report.to_json()) for report in found] == [json.dumps(report.to_json()) for report in data]
    assert (found[0].file, found[0].row_groups, found[0].num_rejects) == (file, groups, (0, 4))
    assert found[0].tally.first == {"bad_label": (1, 70)}
    assert found[1].file is None
