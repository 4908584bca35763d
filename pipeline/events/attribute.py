"""Attribution: find the impression that each action belongs to, in Spark, at a cost that is linear in the log.

    impressions ∪ actions of a (user, item), in order of time
        ─▶ a click goes to the latest impression before it, within the click's window
        ─▶ any other action goes where the latest attributed click before it went, within its own window after the click

Everything is a running "last value" over one sort. There is no range join, so a user with a million events costs a
million steps. docs/events.md has the rules for ties, duplicates, clock skew and named impressions, with their reasons.
tests/support/references/events.py is the slow twin.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from pipeline.config.events import CLICK, PURCHASE
from pipeline.events.read import TUPLE, raw_id
from pipeline.events.tables import GOOD_STATUS

#: The outcomes of an action.
ATTRIBUTED = "attributed"
OUTCOMES = (ATTRIBUTED, "no_impression", "unknown_impression", "no_click", "outside_window")
#: Order at one moment: an impression comes before a click, and a click before the actions that follow clicks.
_IMPRESSION_RANK, _CLICK_RANK, _ACTION_RANK = 0, 1, 2


@dataclass(frozen=True)
class Rules:
    """The rules of attribution."""

    windows_ms: Mapping[str, int]  # by kind: after the impression for a click, after the click for any other
    skew_ms: int = 0
    names_impressions: bool = False  # some actions say which impression they mean
    clicks_later: bool = False  # impressions say when they were clicked: it was not at their own time
    one_anywhere: bool = False  # an id is one impression in all contexts, not in each (checks.duplicates=global)


def attribute(impressions: DataFrame, actions: DataFrame, rules: Rules, num_partitions: int) -> DataFrame:
    """Attribute every action. One row per action: kind, at, user, item, outcome, context_key and impression_id.

    The last two are its impression's. `impressions` has user, item, at, impression_id,
    context_key, click_at. `actions` has user, item, at, kind, named_id (null where it names none). This costs one
    shuffle by (user, item) and one sort; two more sorts where actions name impressions.
    """
    events = _events(impressions, actions, rules).repartition(num_partitions, "user", "item")
    in_time = _until_now(Window.partitionBy("user", "item").orderBy("position", "rank", "own_id", "context_key"))
    is_impression, is_action = F.col("rank") == _IMPRESSION_RANK, F.col("kind").isNotNull()
    shown = F.when(is_impression, F.struct("at", "context_key", F.col("own_id").alias("impression_id")))
    if rules.names_impressions:
        of_name = _until_now(Window.partitionBy("user", "item", "own_id").orderBy("position", "rank", "context_key"))
        events = events.withColumn("named", F.last(shown, ignorenulls=True).over(of_name))
        names = F.col("own_id").isNotNull()
    else:
        events = events.withColumn("named", F.lit(None).cast("struct<at:long,context_key:long,impression_id:long>"))
        names = F.lit(False)
    events = events.withColumn("latest", F.last(shown, ignorenulls=True).over(in_time))
    meant = F.when(names, F.col("named")).otherwise(F.col("latest"))
    is_in_time = F.col("at") - meant["at"] <= rules.windows_ms[CLICK]
    # A click that a column of the impression says is the impression's own, whatever was shown later.
    own = F.struct("at", "context_key", F.col("own_id").alias("impression_id"))
    found = F.struct("at", meant["context_key"].alias("context_key"), meant["impression_id"].alias("impression_id"))
    clicked = F.when(F.col("clicked"), own).when(is_action & (F.col("rank") == _CLICK_RANK) & is_in_time, found)
    events = events.withColumn("own_click", clicked)
    events = events.withColumn("click", F.last("own_click", ignorenulls=True).over(in_time))
    if rules.names_impressions:
        events = _clicks_of_named(events, names)
    return events.where(is_action).select("kind", "at", "user", "item", *_decision(rules, meant, names))


def labels_of(attributed: DataFrame, kinds: tuple[str, ...]) -> DataFrame:
    """Select one row per attributed action: user, item, context_key, impression_id, its time.

    The time, in milliseconds, stands under the action's label: click_at, daction_at (any of the kinds between click and
    purchase) or conversion_at. The other two are null.
    """
    dactions = [kind for kind in kinds if kind not in (CLICK, PURCHASE)]
    kind, at = F.col("kind"), F.col("at")
    return attributed.where(F.col("outcome") == ATTRIBUTED).select(
        "user",
        "item",
        "context_key",
        "impression_id",
        F.when(kind == CLICK, at).alias("click_at"),
        F.when(kind.isin(dactions), at).alias("daction_at"),
        F.when(kind == PURCHASE, at).alias("conversion_at"),
    )


def own_context_key() -> Column:
    """Return the key of a user's context whose own key is also that of other users' contexts."""
    return raw_id(F.concat("user", F.lit(TUPLE), F.col("context_key").cast("string")))


def reaches_ms(rules: Rules) -> dict[str, int]:
    """Return how long after an impression each label can come: the click's window, plus their own for the others."""
    click = rules.windows_ms[CLICK]
    dactions = [window for kind, window in rules.windows_ms.items() if kind not in (CLICK, PURCHASE)]
    return {
        "click_at": click,
        "daction_at": click + max(dactions, default=0),
        "conversion_at": click + rules.windows_ms[PURCHASE],
    }


def label_impressions(
    impressions: DataFrame,
    labels: DataFrame,
    reach_ms: Mapping[str, int],
    num_partitions: int,
    one_anywhere: bool,
    unread: Collection[str] = (),
    restate: Callable[[Column], Column] | None = None,
) -> DataFrame:
    """Add click_at, daction_at, conversion_at, in_context, shared_key to the rows of rows.impressions_of, one each.

    `impressions` have the labels that their own columns say under these names. Each time is that of the first action,
    null without one. `unread` columns are no part of a duplicate's line. A good impression whose id came before in its context, or
    with `one_anywhere` in any context, gets the status duplicate_impression. The others of a context and a split are
    numbered from 1 by in_context, in the order (at, impression_id), and stand together in this order. This costs one
    shuffle of the full rows, and with `one_anywhere` another one. `restate` changes the status of rows before they are
    numbered.

    A context is of one user. Where rows of several users have one context_key, each user's rows get a key of their own,
    own_context_key(), and keep the one that they share as shared_key. It is null everywhere else.

    The impression that stays also gets the labels of its later copies, but none beyond its own `reach_ms`. Otherwise a
    copy in the next period would leak the future into training. A copy in another context has the same user and item.
    """
    times = tuple(reach_ms)
    as_read = [name for name in impressions.columns if name not in unread]
    shown = impressions.withColumn("is_label", F.lit(False)).withColumn("tie", F.xxhash64(*as_read))
    attributed = labels.withColumn("is_label", F.lit(True))
    # Rows without a context or an id are only counted: a key of their own spreads them over the partitions.
    rows = shown.unionByName(attributed, allowMissingColumns=True)
    rows = rows.withColumn("place", F.coalesce(F.col("context_key"), F.col("tie")))
    rows = rows.withColumn("own_id", F.coalesce(F.col("impression_id"), F.col("tie")))
    rows = rows.repartition(num_partitions, "own_id" if one_anywhere else "place")
    is_good = F.col("status") == GOOD_STATUS
    order = ("is_label", ~is_good, "at", "user", "item", "context_key", "tie")
    same_id = Window.partitionBy(*(("own_id",) if one_anywhere else ("place", "user", "own_id"))).orderBy(*order)
    copies = Window.partitionBy("own_id", "user", "item").orderBy(*order) if one_anywhere else same_id
    everywhere = copies.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    number = F.row_number().over(same_id)
    rows = rows.select(
        *(name for name in rows.columns if name not in times),
        *(F.min(name).over(everywhere).alias(name) for name in times),
        number.alias("number"),
    ).where(~F.col("is_label"))
    rows = rows.repartition(num_partitions, "place") if one_anywhere else rows
    of_page = Window.partitionBy("place")
    is_shared = F.col("user").isNotNull() & (F.min("user").over(of_page) != F.max("user").over(of_page))
    rows = rows.withColumn("shared_key", F.when(is_shared, F.col("context_key")))
    is_repeat = is_good & (F.col("number") > 1)
    # A duplicate's line is made of what was read: carrying the text of every row would make the shuffle larger.
    line = F.to_json(F.struct(*(name for name in as_read if name not in ("status", "line"))))
    rows = rows.withColumns(
        {
            "line": F.when(is_repeat, line).otherwise(F.col("line")),
            "status": F.when(is_repeat, "duplicate_impression").otherwise(F.col("status")),
        }
    )
    if restate:  # after duplicates are found: a copy of an impression of an earlier job is one
        rows = rows.withColumn("status", restate(F.col("status")))
    in_reach = {name: is_good & (F.col(name) <= F.col("at") + reach) for name, reach in reach_ms.items()}
    in_reach |= {name: reached & in_reach["click_at"] for name, reached in in_reach.items()}
    of_context = Window.partitionBy("place", "user", "split", "status").orderBy("at", "impression_id")
    key = F.when(F.col("shared_key").isNull(), F.col("context_key")).otherwise(own_context_key())
    return rows.select(
        *(key.alias(name) if name == "context_key" else name for name in impressions.columns if name not in times),
        "shared_key",
        *(F.when(reached, F.col(name)).alias(name) for name, reached in in_reach.items()),
        F.row_number().over(of_context).alias("in_context"),
    )


def _events(impressions: DataFrame, actions: DataFrame, rules: Rules) -> DataFrame:
    """Union both tables: `position` is a row's time in the order, `own_id` the impression id that it has or names."""
    shown = impressions.select(
        "user", "item", F.col("at").alias("position"), F.lit(_IMPRESSION_RANK).alias("rank"), "at",
        F.lit(None).cast("string").alias("kind"), F.col("impression_id").alias("own_id"),
        F.coalesce("context_key", F.lit(-1)).alias("context_key"),
        (F.lit(False) if rules.clicks_later else F.col("click_at").isNotNull()).alias("clicked"),
    )  # fmt: skip
    acted = actions.select(
        "user", "item", (F.col("at") + rules.skew_ms).alias("position"),
        F.when(F.col("kind") == CLICK, _CLICK_RANK).otherwise(_ACTION_RANK).alias("rank"), "at", "kind",
        F.col("named_id").alias("own_id"), F.lit(None).cast("long").alias("context_key"),
        F.lit(False).alias("clicked"),
    )  # fmt: skip
    events = shown.unionByName(acted)
    if not rules.clicks_later:
        return events
    return events.unionByName(
        impressions.where(F.col("click_at").isNotNull()).select(
            "user", "item", (F.col("click_at") + rules.skew_ms).alias("position"), F.lit(_CLICK_RANK).alias("rank"),
            F.col("click_at").alias("at"), F.lit(None).cast("string").alias("kind"), F.col("impression_id").alias("own_id"),
            F.coalesce("context_key", F.lit(-1)).alias("context_key"), F.lit(True).alias("clicked"),
        )
    )  # fmt: skip


def _clicks_of_named(events: DataFrame, names: Column) -> DataFrame:
    """Attribute an action that names its impression to the latest click of that impression, not of any."""
    owner = F.coalesce(F.col("own_click")["impression_id"], F.col("own_id"))
    events = events.withColumn("owner", owner)
    of_owner = _until_now(Window.partitionBy("user", "item", "owner").orderBy("position", "rank", "context_key"))
    own = F.last("own_click", ignorenulls=True).over(of_owner)
    return events.withColumn("own_latest", own).withColumn(
        "click", F.when(names, F.col("own_latest")).otherwise(F.col("click"))
    )


def _decision(rules: Rules, meant: Column, names: Column) -> list[Column]:
    """Return the columns outcome, context_key, impression_id of an action."""
    is_click = F.col("kind") == CLICK
    since = F.when(is_click, F.col("at") - meant["at"]).otherwise(F.col("at") - F.col("click")["at"])
    window = reduce(
        lambda found, pair: F.when(F.col("kind") == pair[0], pair[1]).otherwise(found),
        rules.windows_ms.items(),
        F.lit(-1),
    )
    outcome = (
        F.when(meant.isNull(), F.when(names, "unknown_impression").otherwise("no_impression"))
        .when(~is_click & F.col("click").isNull(), "no_click")
        .when(since > window, "outside_window")
        .otherwise(ATTRIBUTED)
    )
    chosen = F.when(is_click, _without_time(meant)).otherwise(_without_time(F.col("click")))
    target = F.when(outcome == ATTRIBUTED, chosen)
    return [
        outcome.alias("outcome"),
        target["context_key"].alias("context_key"),
        target["impression_id"].alias("impression_id"),
    ]


def _without_time(target: Column) -> Column:
    return F.struct(target["context_key"].alias("context_key"), target["impression_id"].alias("impression_id"))


def _until_now(window: WindowSpec) -> WindowSpec:
    # Trap: the mirror image, current row to unbounded following, takes n² steps: Spark computes it anew for each row.
    return window.rowsBetween(Window.unboundedPreceding, Window.currentRow)
