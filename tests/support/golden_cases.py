"""The golden datasets and runs: each with the arguments of the command that makes it.

Sizes are small, so that there are several files, row groups and input splits within a few seconds.
"""

H = 3600  # seconds
IMPRESSIONS = 60_000
SIMULATION = (f"impressions={IMPRESSIONS}", "seed=1", "rates=demo", "actions=true")

SMALL_FILES = (
    "source.split_bytes=2_000_000",
    "rows.impressions_per_file=9_000",
    "rows.impressions_per_row_group=2_000",
)
EVENTS = ("source=events", "features=shop", "labels=cart_wish", "source.split_bytes=60_000")
#: dataset → (log, arguments of jobs.preprocess). {name} stands for the folder of a log or of an earlier dataset.
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
            "source.events.actions_end=430000",  # the last impressions are immature
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
#: run → (number of ranks, dataset, arguments of jobs.train, arguments of jobs.evaluate). {name} also stands for an earlier run.
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
