"""The kinds of files, where they are, and who reads each."""

from benchmarks.fuzz_files import damage
from benchmarks.fuzz_files.conf_readers import experiment_composed, model_composed
from benchmarks.fuzz_files.data_readers import (
    drop_audit,
    extended,
    fed_by_both,
    fed_by_pages,
    fed_by_pyarrow,
    gzip_log_read,
    inspected,
    log_read,
)
from benchmarks.fuzz_files.inputs import CONF, DATA, GZIP_RAW, RAW, RUN
from benchmarks.fuzz_files.reading import Kind
from benchmarks.fuzz_files.run_readers import (
    best_restored,
    continued,
    drop_newest_checkpoint,
    evaluated,
    forge_checkpoint,
    initialized,
    resumed,
)
from training.checkpoint.meta import META_FILE
from training.run.run_folder import CONFIG

_DATASET_READERS = (inspected, fed_by_pages, fed_by_pyarrow, extended)
_OF_NEWEST = f"{RUN}/checkpoints/step-*"
KINDS = (
    Kind("manifest.json", damage.JSON, f"{DATA}/manifest.json", _DATASET_READERS, fall_back=drop_audit),
    Kind("audit.json, run.json", damage.JSON, f"{DATA}/[ar]u*.json", (inspected,), fall_back=drop_audit),
    Kind("vocabularies", damage.PARQUET, f"{DATA}/vocabulary/*.parquet", (inspected, extended)),
    Kind("dataset's Parquet", damage.PARQUET, f"{DATA}/t*/*.parquet", (inspected, fed_by_pages, fed_by_pyarrow)),
    Kind("Parquet, forged checksum", damage.PARQUET, f"{DATA}/t*/*.parquet", (fed_by_both,), is_content=True),
    Kind("run's manifest.json", damage.JSON, f"{RUN}/dataset/manifest.json", (initialized,)),
    Kind("run's vocabularies", damage.PARQUET, f"{RUN}/dataset/vocabulary/*.parquet", (initialized,)),
    Kind("checkpoint.json", damage.JSON, f"{_OF_NEWEST}/{META_FILE}", (resumed, best_restored, initialized), fall_back=drop_newest_checkpoint),
    Kind("safetensors", damage.SAFETENSORS, f"{_OF_NEWEST}/*.safetensors", (resumed, best_restored, initialized), fall_back=drop_newest_checkpoint),
    Kind("safetensors, forged", damage.SAFETENSORS, f"{_OF_NEWEST}/*.safetensors", (resumed, initialized), forge_checkpoint, True, drop_newest_checkpoint),
    Kind("config.yaml, resumed", damage.YAML, f"{RUN}/{CONFIG}", (continued,)),
    Kind("config.yaml, evaluated", damage.YAML, f"{RUN}/{CONFIG}", (evaluated,), is_content=True),
    Kind("--config-dir: model", damage.YAML, f"{CONF}/model/mine.yaml", (model_composed,), is_content=True),
    Kind("--config-dir: experiment", damage.YAML, f"{CONF}/experiment/mine.yaml", (experiment_composed,), is_content=True),
    Kind("raw text", damage.LINES, f"{RAW}/*.csv", (log_read,), is_content=True),
    Kind("raw gzip", damage.GZIP, f"{GZIP_RAW}/*.gz", (gzip_log_read,), is_content=True),
)  # fmt: skip
