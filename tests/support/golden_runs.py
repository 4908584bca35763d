"""What the commands of this project made of fixed inputs once, recorded, and what a checkout makes of them now.

    python tests/support/golden_runs.py --compare                         # prints each difference; status 1 if there is one
    python tests/support/golden_runs.py --record                          # writes tests/whole/golden.json anew
    python tests/support/golden_runs.py --record --checkout ../before   # from the commands of another checkout
    python tests/support/golden_runs.py --compare --keep FOLDER           # leaves logs, datasets and runs there

It knows the project by its command lines and by the files that they write, and imports none of its modules, so that it holds
whatever they are called. Commands that start slowly (a JVM, torch) run one behind the other in one process: each is
`python -m <module> <arguments>` to the letter, by runpy, with a sys.argv of its own. Two ranks do so below torchrun.

Two kinds of values are recorded:
- bytes of logs and datasets: the same on every machine, with the pyarrow that is named (its version stands in its files);
- bits of weights, losses and predictions, and beside them sums and norms. Bits are compared where the machine is like the one of
  the recording (`fingerprint`), for torch, oneDNN, MKL and FBGEMM choose their kernels by CPU, and other kernels round sums in
  another order. Elsewhere the numbers are compared, within tolerances (`EARLY`).
"""

import argparse
import csv
import json
import math
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "whole" / "golden.json"
#: Names another checkout, whose commands are run in place of this one's.
CHECKOUT = "GOLDEN_CHECKOUT"

H = 3600
TIMEOUT_S = 900.0  # of what runs in one process
IMPRESSIONS = 60_000

Row = dict[str, Any]
Seen = dict[str, Any]  # as in golden.json

#: dataset → (log, arguments of jobs.preprocess); {name} is the folder of the dataset of that name. A later one may build on
#: an earlier one. Sizes are small so that there are several files, row groups and input splits.
SMALL_FILES = (
    "source.split_bytes=2_000_000",
    "rows.impressions_per_file=9_000",
    "rows.impressions_per_row_group=2_000",
)
EVENTS = ("source=events", "features=shop", "labels=cart_wish", "source.split_bytes=60_000")
DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("log", ()),
    "daction": ("log", ("labels=cart_wish", *SMALL_FILES)),
    "numeric_hashed_limited": (
        "log",
        (
            "features=aliccp_numeric",
            "features.fields.user_shops.hash_buckets=700",
            "features.fields.item_id.hash_buckets=500",
            "features.fields.item_brand.max_ids=40",
            "features.fields.item_shop.min_count=4",
            "vocabulary.max_ids=300",
            "vocabulary.min_count=1",
            "split.validation=0.2",
            "rows.max_impressions=16",
            "seed=5",
        ),
    ),
    "next_day": ("next_log", ("labels=cart_wish", "vocabulary.base={daction}", *SMALL_FILES)),
    "spark_reader": ("log_in_parts", ("source.reader=spark", "labels.daction=[wish]", *SMALL_FILES)),
    "global_duplicates": (
        "log",
        (
            "checks.duplicates=global",
            "checks.feature_count_mismatch=quarantine",
            "checks.conversion_without_click=quarantine",
            *SMALL_FILES,
        ),
    ),
    "events": (
        "events",
        (
            *EVENTS,
            f"source.events.boundaries=[0,{24 * H},{36 * H},{48 * H}]",
            "source.events.actions_end=430_000",  # the last impressions are immature
            "source.events.actions.format=jsonl",
            "source.events.actions.path=actions.jsonl",
            "source.events.actions.impression=[impression_id]",
            "+features.fields.price={raw_id: price, scope: impression, kind: numeric}",
            "features.fields.user_city.hash_buckets=16",
            "vocabulary.min_count=1",
            "rows.max_impressions=3",
            "rows.impressions_per_row_group=200",
        ),
    ),
    "events_in_texts": (
        "events_in_texts",
        (
            *EVENTS,
            f"source.events.boundaries=[0,{24 * H},{36 * H},{48 * H}]",
            "source.events.impressions={path: impressions.csv, format: csv, id: [], context: [], click: clk}",
            "source.events.actions={path: actions.csv, format: csv, action: btag}",
            "source.events.joins=[{path: items.parquet, format: parquet, by: [item_id], key: [id]}]",
            "source.events.names={click: [], cart: [cart, basket], wish: [fav], purchase: [buy]}",
            "source.events.windows_s={click: 0, cart: 20000, wish: 20000, purchase: 40000}",
            "source.events.clock_skew_s=5",
            "source.events.nulls=['','NULL']",
            "checks.duplicates=global",
        ),
    ),
}

ONE_RANK, TWO_RANKS = 1, 2
EARLY_STEP, LAST_STEP = 10, 60
STEPS = (f"checkpoint.every_steps={EARLY_STEP}", "checkpoint.keep=9", "log.every_steps=1")
#: The train split of `daction` has 27,509 impressions and 3,363 clicks, so these are 60 steps of impressions, 61 of clicks.
SIXTY, SIXTY_OF_CLICKS = ("plan.batch_size=464", *STEPS), ("plan.batch_size=56", *STEPS)
#: run → (number of ranks, dataset, arguments of jobs.train, arguments of jobs.evaluate); {name} as above, or an earlier run.
RUNS: dict[str, tuple[int, str, tuple[str, ...], tuple[str, ...]]] = {
    "esmm": (ONE_RANK, "daction", ("model=esmm", *SIXTY), ("truth={log}/truth_test.parquet",)),
    "esm2": (ONE_RANK, "daction", ("model=esm2", *SIXTY), ()),
    "base": (ONE_RANK, "daction", ("model=base", *SIXTY_OF_CLICKS), ()),
    "sgd_dropout_numeric": (
        ONE_RANK,
        "numeric_hashed_limited",
        (
            "model=esmm",
            "optimizer=sgd",
            "model.towers.dropout=0.3",
            "embedding.pooling=mean",
            "validation.every_steps=20",
            "plan.lanes=4",
            "plan.batch_size=400",
            *STEPS,
        ),
        ("checkpoint=best",),
    ),
    "bf16_adagrad_schedules": (
        ONE_RANK,
        "daction",
        (
            "model=esmm_wide",
            "precision=bf16",
            "optimizer=adagrad",
            "optimizer.towers.clip_norm=0.5",
            "optimizer.towers.schedule.warmup_steps=10",
            "optimizer.embeddings.schedule={warmup_steps: 5, decay: cosine, decay_steps: 50, final: 0.1}",
            *SIXTY,
        ),
        ("split=validation",),
    ),
    "next_day": (ONE_RANK, "next_day", ("model=esmm", "init_from={esmm}", "plan.batch_size=456", *STEPS), ()),
    "esmm_2": (TWO_RANKS, "daction", ("model=esmm", *SIXTY), ()),
    "esm2_2": (TWO_RANKS, "daction", ("model=esm2", *SIXTY), ()),
    "base_2": (TWO_RANKS, "daction", ("model=base", *SIXTY_OF_CLICKS), ()),
    "row_wise_2": (
        TWO_RANKS,
        "daction",
        (
            "model=esmm",
            "sharding.default=row_wise",
            "sharding.tables.user_gender=data_parallel",
            "embedding.dims.item_id=32",
            "embedding.poolings.user_shops=mean",
            *SIXTY,
        ),
        (),
    ),
}

#: Tolerances where bits cannot be compared, of losses and of the norms of tensors, up to step 10 and after it. Another kernel's
#: rounding is some 1e-7, and stays below 1e-5 while no ReLU switches over because of it. The first that does moves weights
#: by a step of Adam, others follow, and ten steps later losses are 1e-2 apart: soon in deep towers with dropout, and in some
#: runs not within sixty steps. So the first steps are held tightly, for any change of the computation shows there as well,
#: and the last ones roughly. Measured on one machine whose libraries were held to AVX2 and to SSE (ATEN_CPU_CAPABILITY,
#: ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS, MKL_CBWR), the largest of all runs: losses 4e-7 and norms 1e-6 up to
#: step 10, losses 5e-2 and norms 0.24 at the end.
EARLY, LATE_LOSS, LATE_NORM = 1e-3, 0.2, 0.5
#: bf16 rounds by 4e-3 (measured: losses 1e-3, norms 3e-2 at step 10), and the next day begins with the weights of a step 60.
EARLY_OF = {"bf16_adagrad_schedules": 5e-2, "next_day": 5e-2}
#: Metrics of predictions, absolutely: AUCs and losses (measured: 1.2e-2), and those by few impressions (0.13).
LATE_AUC, LATE_METRIC = 0.05, 0.3


def perform(checkout: Path, folder: Path) -> Seen:
    """Run every command of `checkout` below the empty `folder`, and look at what they wrote."""
    logs = _write_logs(checkout, folder)
    places = {**logs, **{name: folder / "datasets" / name for name in DATASETS}}
    preprocess = [
        ["jobs.preprocess", f"source.path={logs[log]}", f"out={places[name]}", *_placed(arguments, places)]
        for name, (log, arguments) in DATASETS.items()
    ]
    _together(checkout, folder / "preprocess", preprocess)
    runs = {name: folder / "runs" / name for name in RUNS}
    for num_ranks in (ONE_RANK, TWO_RANKS):
        commands = []
        for name, (ranks, data, train, evaluate) in RUNS.items():
            if ranks == num_ranks:
                arguments = _placed(train, places | runs)
                commands.append(["jobs.train", f"data={places[data]}", f"out={runs[name]}", *arguments])
                commands.append(["jobs.evaluate", f"run={runs[name]}", *_placed(evaluate, places)])
        _together(checkout, folder / f"train-{num_ranks}", commands, num_ranks)
    return look(logs, places, runs)


def look(logs: Mapping[str, Path], places: Mapping[str, Path], runs: Mapping[str, Path]) -> Seen:
    """What golden.json has of these folders."""
    seen = {
        "fingerprint": fingerprint(),
        "pyarrow": version("pyarrow"),
        "logs": {name: _files(path) for name, path in logs.items()},
        "datasets": _datasets(places),
        "runs": {name: _run(path) for name, path in runs.items()},
    }
    return json.loads(json.dumps(seen))  # as it is read from golden.json


# ── the commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _placed(arguments: tuple[str, ...], places: Mapping[str, Path]) -> list[str]:
    """The arguments, each {name} as the folder of that name."""
    placed = []
    for argument in arguments:
        for name, place in places.items():
            argument = argument.replace(f"{{{name}}}", str(place))
        placed.append(argument)
    return placed


def _together(checkout: Path, work: Path, commands: list[list[str]], num_ranks: int = ONE_RANK) -> None:
    """Run `python -m <command>` for each, in one process, or in one for each of several ranks."""
    work.mkdir()
    (work / "commands.json").write_text(json.dumps(commands))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    ranks = [*torchrun, "--nproc-per-node", str(num_ranks)] if num_ranks > 1 else []
    command = [sys.executable, *ranks, str(Path(__file__).resolve()), "--commands", str(work / "commands.json")]
    settings = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (work / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status != 0:
        raise RuntimeError(f"status {status}:\n{(work / 'output').read_text()[-4000:]}")


def run_commands(path: Path) -> None:
    """In the process that `_together` started: each command as `python -m` runs it."""
    sys.path[0] = os.getcwd()  # as with -m; it was this file's folder
    for number, (module, *arguments) in enumerate(json.loads(path.read_text())):
        print(f"── {module} {' '.join(arguments)}", flush=True)
        sys.argv = [module, *arguments]
        if "RANK" in os.environ:
            _meet_anew(path.with_name(f"port-{number}"))
        status: Any = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code
        if status:
            sys.exit(status)
        of = Path(str(sys.modules["jobs"].__file__))
        assert of.is_relative_to(os.getcwd()), f"{of} was run, which is not of this checkout"


def _meet_anew(place: Path) -> None:
    """Let the ranks meet at a port of their own for each command, as if torchrun had started them again: in torchrun's
    store a rank that is ahead would find what the other wrote when they met before.
    """
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place.with_suffix(".partial").write_text(str(free.getsockname()[1]))
        place.with_suffix(".partial").rename(place)
    while not place.exists():
        time.sleep(0.02)
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": place.read_text()}


# ── the logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_logs(checkout: Path, folder: Path) -> dict[str, Path]:
    """A simulated log, the same in parts, the next day's, and two event logs."""
    logs = {name: folder / "logs" / name for name in ("log", "log_in_parts", "next_log", "events", "events_in_texts")}
    simulated = [f"out={logs['log']}", f"impressions={IMPRESSIONS}", "seed=1", "rates=demo", "actions=true"]
    _together(checkout, folder / "simulate", [["jobs.simulate", *simulated]])
    for name, kept in (("next_log", _swapped), ("log_in_parts", _in_parts)):
        logs[name].mkdir()
        for path in sorted(logs["log"].glob("*.csv")):
            kept(path, logs[name])
    for name, write in (("events", _write_events), ("events_in_texts", _write_events_in_texts)):
        logs[name].mkdir()
        write(logs[name])
    return logs


def _swapped(path: Path, folder: Path) -> None:
    """The next day: what was the test split is what is trained on."""
    other = {"train": "test", "test": "train"}
    table, split = path.stem.rsplit("_", 1)
    (folder / f"{table}_{other[split]}.csv").write_bytes(path.read_bytes())


def _in_parts(path: Path, folder: Path) -> None:
    """Skeleton and common features as directories of three parts, the second with lines that end in CR LF."""
    content = path.read_bytes()
    if path.stem.startswith("actions"):
        (folder / path.name).write_bytes(content)
        return
    lines = content.splitlines(keepends=True)
    third = len(lines) // 3
    parts = lines[:third], lines[third : 2 * third], lines[2 * third :]
    (folder / path.stem).mkdir()
    for number, part in enumerate(parts):
        text = b"".join(part)
        (folder / path.stem / f"part-{number}").write_bytes(text.replace(b"\n", b"\r\n") if number == 1 else text)


class Draw:
    """Random numbers that no release of Python changes: those of random.random() alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def happens(self, probability: float) -> bool:
        return self._random() < probability


def _page_views(draw: Draw, count: int) -> Iterator[tuple[int, str, list[str]]]:
    """(time, user, items): some users and items are numbers, most are texts. The items of a page may repeat."""
    for _ in range(count):
        number = draw.below(60)
        user = str(1000 + number) if number % 7 == 0 else f"user-{number}"
        numbers = [min(draw.below(150), draw.below(150)) for _ in range(1 + draw.below(7))]
        yield draw.below(52 * H), user, [str(n) if n % 5 == 0 else f"item/{n}é" for n in numbers]


def _actions_after(draw: Draw, time: int, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """What may follow an impression: (time, name)."""
    if not draw.happens(0.35):
        return
    click = time + draw.below(4200)  # of which some come too late
    yield click, names["click"]
    if draw.happens(0.1):
        yield click + draw.below(60), names["click"]
    for kind, probability in (("cart", 0.4), ("wish", 0.2), ("purchase", 0.3), ("view", 0.3)):
        if draw.happens(probability):
            yield click + draw.below(40 * H), names[kind]


def _write_events(folder: Path) -> None:
    """Parquet impressions with lists and page views, and actions as JSON lines, some of which name their impression."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, impressions, actions = Draw(11), [], []
    names = {kind: kind for kind in ("click", "cart", "wish", "purchase", "view")}
    for view, (shown, user, items) in enumerate(_page_views(draw, 800)):
        for item in items:
            at, id_ = shown + draw.below(90), f"i{len(impressions)}" if draw.happens(0.5) else str(len(impressions))
            row: Row = {
                "impression_id": id_, "timestamp": at, "user_id": user, "item_id": item, "page_view_id": f"view {view}",
                "city": ("Oslo", "Bergen", None, "København")[len(user) % 4],
                "categories": [draw.below(30) for _ in range(draw.below(4))],
                "item_category": len(item) * 3,
                "tags": [f"t{draw.below(25)}" for _ in range(draw.below(4))],
                "price": None if draw.happens(0.1) else draw.below(9000) / 8,
            }  # fmt: skip
            row["categories__weight"] = [(1 + draw.below(40)) / 7 for _ in row["categories"]]
            impressions.append(row)
            for then, name in _actions_after(draw, at, names):
                of = {"impression_id": id_ if draw.happens(0.3) else None}
                actions.append({"timestamp": then, "user_id": user, "item_id": item, "action": name, **of})
            if draw.happens(0.01):  # delivered twice
                impressions.append(row | {"timestamp": at + draw.below(20)})
            if draw.happens(0.02):
                broken: Row = (
                    {"user_id": None}, {"page_view_id": None}, {"tags": ["a", None]}, {"price": math.inf},
                    {"categories__weight": [0.5] * 9}, {"impression_id": None}, {"timestamp": None},
                )[draw.below(7)]  # fmt: skip
                impressions.append(row | {"impression_id": f"b{len(impressions)}", **broken})
    schema = pa.schema([
        ("impression_id", pa.string()), ("timestamp", pa.int64()), ("user_id", pa.string()), ("item_id", pa.string()),
        ("page_view_id", pa.string()), ("city", pa.string()), ("categories", pa.list_(pa.int64())),
        ("categories__weight", pa.list_(pa.float64())), ("item_category", pa.int32()),
        ("tags", pa.list_(pa.string())), ("price", pa.float64()),
    ])  # fmt: skip
    (folder / "impressions").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(impressions[part::2], schema), folder / "impressions" / f"{part}.parquet")
    lines = [json.dumps(action, ensure_ascii=False) for action in actions]
    lines.insert(len(lines) // 2, '{"timestamp": 9, "user_id"')
    (folder / "actions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_events_in_texts(folder: Path) -> None:
    """CSV without ids of impressions and page views and with a column of clicks; what is known of items lies beside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, impressions, actions, known = Draw(12), [], [], set()
    names = {"click": "pv", "cart": "cart", "wish": "fav", "purchase": "buy", "view": "basket"}
    for shown, user, items in _page_views(draw, 700):
        for item in items:
            known.add(item)
            at = shown + draw.below(90)
            after = list(_actions_after(draw, at, names))
            row: Row = {
                "timestamp": at, "user_id": user, "item_id": item, "clk": int(bool(after)),
                "city": ("Oslo", "NULL", "", "Tromsø")[len(user) % 4],
                "categories": "|".join(f"c{draw.below(12)}" for _ in range(draw.below(4))),
            }  # fmt: skip
            row["categories__weight"] = "|".join("0.25" for text in row["categories"].split("|") if text)
            if draw.happens(0.02):
                broken: Row = (
                    {"timestamp": "soon"}, {"clk": 2}, {"categories": "7||9"}, {"categories__weight": "nan"}, {"user_id": ""},
                )[draw.below(5)]  # fmt: skip
                row |= broken
            impressions += [row] * (2 if draw.happens(0.01) else 1)
            for then, name in after[1:]:
                # An action may be stamped a little before what it follows.
                actions.append({"timestamp": then - draw.below(4), "user_id": user, "item_id": item, "btag": name})
    for name, rows in (("impressions.csv", impressions), ("actions.csv", actions)):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    described = [
        {"id": item, "item_category": len(item) * 7, "tags": [f"t{draw.below(9)}" for _ in range(draw.below(3))]}
        for item in sorted(known)
        if not draw.happens(0.1)
    ]
    pq.write_table(pa.Table.from_pylist(described), folder / "items.parquet")


# ── what they wrote ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _xxh3(content: Any) -> str:
    """Of bytes, of a text, or of anything else as JSON."""
    import xxhash

    if not isinstance(content, bytes | str):
        content = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return xxhash.xxh3_64_hexdigest(content.encode() if isinstance(content, str) else content)


def _files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> dict[str, list[Any]]:
    """path → bytes, xxh3."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(suffixes)):
        content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = [len(content), _xxh3(content)]
    return found


def _datasets(places: Mapping[str, Path]) -> dict[str, Seen]:
    """What is recorded of every dataset."""
    found: dict[str, Seen] = {}
    of_base: dict[str, str] = {}  # the hash of a manifest as it is → as it is recorded
    for name in DATASETS:
        text = (places[name] / "manifest.json").read_text()
        manifest = json.loads(text)
        assert text == _canonical(manifest), f"{places[name]}/manifest.json is written in another way"
        xxh3 = _xxh3(text)
        manifest = _normalised(manifest, of_base)
        of_base[xxh3] = _xxh3(_canonical(manifest))
        found[name] = _dataset(places[name], manifest, xxh3)
    return found


def _canonical(manifest: Seen) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def _normalised(manifest: Seen, of_base: Mapping[str, str]) -> Seen:
    """The manifest without the setting `rows.scatter_chunks`, which a later release does not have: two of its values follow
    from that one and go with it, the hash of the settings, and the hashes of earlier manifests (vocabulary.base).
    """
    manifest["settings"]["rows"].pop("scatter_chunks", None)
    del manifest["settings_xxh3"]
    base = manifest["settings"]["vocabulary"]["base"]
    manifest["settings"]["vocabulary"]["base"] = base and of_base[base]  # KeyError: it is not that of its base
    manifest["lineage"] = [of_base[xxh3] for xxh3 in manifest["lineage"]]
    return manifest


def _dataset(folder: Path, manifest: Seen, xxh3: str) -> Seen:
    import pyarrow.parquet as pq

    quarantine = {}
    for file in manifest["audit"]["quarantine"]:
        rows = pq.read_table(folder / file["path"]).to_pylist()
        texts = [{key: str(value) for key, value in row.items()} for row in rows]  # lines are bytes
        quarantine[file["path"]] = {"reasons": Counter(row["reason"] for row in rows), "rows_xxh3": _xxh3(texts)}
    audit = json.loads((folder / "audit.json").read_text())
    assert audit.pop("manifest_xxh3") == xxh3, f"{folder}/audit.json is not of its manifest"
    return {
        "manifest_xxh3": _xxh3(_canonical(manifest)),
        "manifest": {key: value if key == "totals" else _xxh3(value) for key, value in manifest.items()},
        "files": _files(folder, (".parquet",)),
        "quarantine": quarantine,
        "audit_xxh3": _xxh3(audit),
    }


def _run(folder: Path) -> Seen:
    from safetensors.numpy import load_file

    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    checkpoints: Seen = {}
    for path in sorted((folder / "checkpoints").glob("step-*")):
        checkpoints[path.name] = found = {"files": _files(path, (".safetensors",))}
        if path.name in (_checkpoint(EARLY_STEP), _checkpoint(LAST_STEP)):
            found["tensors"] = {
                f"{name}:{key}": _array(array)
                for name in found["files"]
                for key, array in sorted(load_file(path / name).items())
            }
    return {
        "log": [
            {key: entry[key] for key in entry if key not in ("impressions_per_s", "waiting_share")} for entry in log
        ],
        "checkpoints": checkpoints,
        "evaluations": {path.name: _evaluation(folder, path) for path in sorted((folder / "predictions").iterdir())},
    }


def _evaluation(run: Path, predictions: Path) -> Seen:
    """Metrics, and predictions in the order of impressions, however they are spread over the files of ranks."""
    import pyarrow.parquet as pq

    table = pq.read_table(predictions).sort_by([("impression_id", "ascending"), ("context_id", "ascending")])
    columns = {
        name: _xxh3(column.to_pylist())
        if name in ("context_id", "group_id")  # texts; numbers that may be missing
        else _array(column.to_numpy())
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return {"columns": columns, "metrics": json.loads((run / f"metrics.{predictions.name}.json").read_text())}


def _checkpoint(step: int) -> str:
    return f"step-{step:08d}"


def _array(array: Any) -> str:
    """Type, shape and bits of an array, and what tells it from another one where bits do not say: sum and norm."""
    import numpy as np

    wide = array.astype(np.float64).ravel()
    shape = "x".join(map(str, array.shape)) or "1"
    numbers = f"{wide.sum():.7g} {np.sqrt((wide * wide).sum()):.7g}"
    return f"{array.dtype.name} {shape} {_xxh3(np.ascontiguousarray(array).tobytes())} {numbers}"


def fingerprint() -> Seen:
    """What decides the bits of a floating-point result here, as far as it is known."""
    import torch

    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        cpu[name.strip()] = value.strip()
    wanted = ("avx", "fma", "amx", "f16c", "bf16", "vnni")
    packages = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy")
    return {
        "cpu": {key: cpu.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "cache size")},
        "flags": sorted(flag for flag in cpu.get("flags", "").split() if any(word in flag for word in wanted)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ── the comparison ────────────────────────────────────────────────────────────────────────────────────────────────────────


def differences(golden: Any, seen: Any, where: str = "") -> list[str]:
    """Where `seen` is not what was recorded, one line each."""
    if isinstance(golden, dict) and isinstance(seen, dict):
        found = [f"{where}/{key} is {'new' if key in seen else 'gone'}" for key in sorted(golden.keys() ^ seen.keys())]
        for key in golden:
            if key in seen:
                found += differences(golden[key], seen[key], f"{where}/{key}")
        return found
    if isinstance(golden, list) and isinstance(seen, list) and len(golden) == len(seen):
        pairs = enumerate(zip(golden, seen, strict=True))
        return [line for number, (one, other) in pairs for line in differences(one, other, f"{where}/{number}")]
    return [] if golden == seen else [f"{where} was {golden} and is {seen}"]


def run_differences(name: str, golden: Seen, seen: Seen) -> list[str]:
    """Where the run `name` is not near what was recorded on a machine of another kind, one line each."""
    early = EARLY_OF.get(name, EARLY)
    found = differences(_shape_of(golden), _shape_of(seen))
    if found:
        return found
    for one, other in zip(golden["log"], seen["log"], strict=True):
        tolerance = early if one["step"] <= EARLY_STEP else LATE_LOSS
        found += _metric_differences(f"/log/{one['step']}", one, other, tolerance)
    for step, tolerance in ((EARLY_STEP, early), (LAST_STEP, LATE_NORM)):
        one, other = (run["checkpoints"][_checkpoint(step)]["tensors"] for run in (golden, seen))
        found += [line for key in one for line in _array_differences(f"/{step}/{key}", one[key], other[key], tolerance)]
    for split in golden["evaluations"]:
        one, other = (run["evaluations"][split] for run in (golden, seen))
        found += _metric_differences(f"/{split}", one["metrics"], other["metrics"], LATE_LOSS)
        for key, value in one["columns"].items():
            if key.startswith("p_"):
                found += _array_differences(f"/{split}/{key}", value, other["columns"][key], LATE_LOSS)
            else:  # what was read, not computed
                found += differences(value, other["columns"][key], f"/{split}/{key}")
    return found


def _shape_of(run: Seen) -> Seen:
    """What does not depend on rounding: steps, names, types, shapes."""
    return {
        "log": [[entry["epoch"], entry["step"], sorted(entry)] for entry in run["log"]],
        "checkpoints": {
            name: {
                "files": {file: num_bytes for file, (num_bytes, _) in checkpoint["files"].items()},
                "tensors": {key: text.split()[:2] for key, text in checkpoint.get("tensors", {}).items()},
            }
            for name, checkpoint in run["checkpoints"].items()
        },
        "evaluations": {
            split: {"metrics": sorted(found["metrics"]), "columns": sorted(found["columns"])}
            for split, found in run["evaluations"].items()
        },
    }


def _metric_differences(where: str, golden: Seen, seen: Seen, loss_rtol: float) -> list[str]:
    """Losses of training relatively; metrics absolutely, for they may be near 0; counts and names exactly."""
    found = []
    for key, value in golden.items():
        other = seen[key]
        if not isinstance(value, float) or not isinstance(other, float):
            near = value == other
        elif key.startswith("loss"):
            near = abs(value - other) <= loss_rtol * abs(value)
        else:
            few = key.endswith("_calibration") or "_top_" in key
            near = abs(value - other) <= (LATE_METRIC if few else LATE_AUC)
        found += [] if near else [f"{where}/{key} was {value} and is {other}"]
    return found


def _array_differences(where: str, golden: str, seen: str, tolerance: float) -> list[str]:
    """Arrays of one type and shape. If they are `tolerance` of the norm apart, their norms differ by no more than that, and
    their sums by no more than √size times it (Cauchy and Schwarz)."""
    _, shape, _, *numbers = golden.split()
    *_, other_sum, other_norm = map(float, seen.split()[3:])
    whole_sum, norm = map(float, numbers)
    size = math.prod(map(int, shape.split("x")))
    if abs(norm - other_norm) <= tolerance * norm and abs(whole_sum - other_sum) <= tolerance * norm * math.sqrt(size):
        return []
    return [f"{where} was {golden} and is {seen}"]


def text_of(seen: Seen) -> str:
    """As JSON with a line for each thing that fits one."""

    def lines(value: Any, indent: str) -> str:
        short = json.dumps(value, ensure_ascii=False)
        if len(short) <= 150 or not isinstance(value, dict | list):
            return short
        inner = indent + " "
        if isinstance(value, list):
            return "[\n" + ",\n".join(inner + lines(item, inner) for item in value) + f"\n{indent}]"
        items = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {lines(item, inner)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"

    return lines(seen, "") + "\n"


def all_differences(golden: Seen, seen: Seen) -> list[str]:
    """Logs and datasets to the byte, runs to the bit where the machine is alike."""
    found = [
        line for part in ("pyarrow", "logs", "datasets") for line in differences(golden[part], seen[part], f"/{part}")
    ]
    for name in RUNS:
        one, other = golden["runs"][name], seen["runs"][name]
        alike = golden["fingerprint"] == seen["fingerprint"]
        told = differences(one, other) if alike else run_differences(name, one, other)
        found += [f"/runs/{name}{line}" for line in told]
    return found


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", action="store_true")
    what.add_argument("--compare", action="store_true")
    what.add_argument("--commands", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--checkout", type=Path, default=Path(os.environ.get(CHECKOUT, ROOT)))
    parser.add_argument("--keep", type=Path, help="an empty or new folder for all that is made")
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    options = parser.parse_args()
    if options.commands:
        run_commands(options.commands)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seen = perform(options.checkout.resolve(), folder.resolve())
    if options.record:
        options.golden.write_text(text_of(seen), encoding="utf-8")
        print(options.golden)
        return
    golden = json.loads(options.golden.read_text(encoding="utf-8"))
    alike = golden["fingerprint"] == seen["fingerprint"]
    print("bits of runs are compared" if alike else "another machine: numbers of runs are compared, not bits")
    found = all_differences(golden, seen)
    print("\n".join(found) or "no difference")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
