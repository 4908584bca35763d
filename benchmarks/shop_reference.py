"""What a world's dataset has to hold, slowly and by another way than the pipeline's: one row at a time, with pandas.

Written from docs/events.md. Times are milliseconds; a row's labels are those of the first action of each.
"""

from typing import Any

import pandas as pd
import xxhash

from benchmarks.shop_draw import KINDS, Row, World

NEVER = 1 << 62
TIMES = {"click": "click_at", "cart": "daction_at", "purchase": "conversion_at"}
COLUMNS = ("user", "item", "at", "impression_id", "context_key", "status", "split", "click_at", "daction_at", "conversion_at", "f0", "f1", "f2")  # fmt: skip


def text_to_id(text: str | None) -> int | None:
    """Return the raw id of a text."""
    if text is None:
        return None
    if text.isdigit() and text == str(int(text)) and int(text) < 1 << 63:
        return int(text)
    return xxhash.xxh64(text.encode(), seed=42).intdigest() & ((1 << 63) - 1)


class Expected:
    """The rows and outcomes of a world."""

    def __init__(self, world: World) -> None:
        settings = world.settings
        self.world, self.settings = world, settings
        self.windows = {kind: settings.window_ms(kind) for kind in KINDS}
        self.skew = settings.clock_skew_s * 1000
        self.outcomes: dict[str, dict[str, int]] = {}
        self.shown = pd.DataFrame([self._read(row) for row in world.impressions], dtype="object")
        self.acted = self._actions()
        self.end = settings.actions_end_ms() or self._latest_action()
        self._place()
        self._attribute()
        self._label()

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the expected rows of the labelled impressions that are not malformed."""
        good = self.shown[self.shown["status"] != "malformed_line"]
        return [tuple(_plain(value) for value in row) for row in good[list(COLUMNS)].itertuples(index=False)]

    @property
    def num_malformed(self) -> int:
        """The number of malformed rows."""
        return int((self.shown["status"] == "malformed_line").sum())

    def _read(self, row: Row) -> Row:
        entry = self.settings.impressions
        at, user, item = (None if row["at"] is None else row["at"] * 1000), row["user"], row["item"]
        page: str | None = row["page"]
        if not entry.context and at is not None and user is not None:
            window = self.settings.context_window_s * 1000
            page = f"{user}\x1f{at - at % window}"
        own_id = row["id"] if entry.id else None
        if not entry.id and None not in (at, user, item):
            own_id = "\x1f".join(text for text in (user, item, page, str(at)) if text is not None)
        found: Row = {
            "at": at, "user": user, "item": item, "impression_id": text_to_id(own_id), "context_key": text_to_id(page),
            "status": "", "f0": text_to_id(item), "f1": text_to_id(None if row["city"] == "-" else row["city"]),
            "f2": text_to_id(self._category(item, at)),
        }  # fmt: skip
        if None in (at, user, item, own_id):
            return found | {"status": "malformed_line", "user": None} | dict.fromkeys(TIMES.values())
        if page is None:
            found["status"] = "bad_context_key"
        return found | self._own_labels(row, at)

    def _category(self, item: str | None, at: int | None) -> str | None:
        if not self.settings.joins or item is None:
            return None
        rows = [row for row in self.world.history if row["item"] == item]
        if self.settings.joins[0].asof:
            rows = [row for row in rows if at is not None and row["since"] * 1000 <= at]
            rows = sorted(rows, key=lambda row: row["since"])[-1:]
        return rows[0]["cat"] if rows else None

    def _own_labels(self, row: Row, at: Any) -> Row:
        entry, found = self.settings.impressions, dict.fromkeys(TIMES.values())
        if entry.click and row["flag"] == "1":
            clicked = row["flag_at"] * 1000 if entry.click_time else at
            if clicked - at <= self.windows["click"]:
                found["click_at"] = clicked
                if (
                    entry.conversion
                    and row["sold"] == "1"
                    and row["sold_at"] * 1000 - clicked <= self.windows["purchase"]
                ):
                    found["conversion_at"] = row["sold_at"] * 1000
        return found

    def _actions(self) -> pd.DataFrame:
        meaning = {name: kind for kind, names in self.settings.names.items() for name in names}
        rows = []
        self.counts = {"read": 0, "malformed": 0, "other": 0}
        where = self.settings.actions.where.get("name")
        for row in self.world.actions:
            if where and row["name"] not in where:
                continue
            self.counts["read"] += 1
            kind = meaning.get(row["name"])
            if row["at"] is None or row["user"] is None or row["name"] is None or (kind and row["item"] is None):
                self.counts["malformed"] += 1
            elif kind is None:
                self.counts["other"] += 1
                rows.append({"at": row["at"] * 1000, "kind": None, "user": "", "item": ""})
            else:
                rows.append({"at": row["at"] * 1000, "kind": kind, "user": row["user"], "item": row["item"]})
        return pd.DataFrame(rows, columns=["at", "kind", "user", "item"], dtype="object")

    def _latest_action(self) -> int:
        return int(self.acted["at"].max()) if len(self.acted) else -1

    def _place(self) -> None:
        """Set splits, statuses and each user's own contexts."""
        t0, t1, t2, t3 = self.settings.boundaries_ms()
        reach = self.windows["click"] + max(self.windows["cart"], self.windows["purchase"])
        users = self.shown[self.shown["user"].notna()].groupby("context_key")["user"].nunique()
        self.shown["split"] = None
        self.shown["page"] = self.shown["context_key"]
        for place, row in self.shown.iterrows():
            if row["at"] is None or pd.isna(row["at"]):
                continue
            split = next((n for n, (a, b) in enumerate(((t0, t1), (t1, t2), (t2, t3))) if a <= row["at"] < b), None)
            self.shown.at[place, "split"] = split
            if not row["status"]:
                status = "outside_split" if split is None else "immature" if row["at"] > self.end - reach else "good"
                self.shown.at[place, "status"] = status
            if row["user"] is not None and not pd.isna(row["page"]) and users[row["page"]] > 1:
                self.shown.at[place, "context_key"] = text_to_id(f"{row['user']}\x1f{int(row['page'])}")

    def _attribute(self) -> None:
        """Find the impression of every action; add its time to the labels found for that impression."""
        shown = self.shown[self.shown["status"] != "malformed_line"]
        self.found: list[tuple[int, str, int]] = []  # (place of the impression, label's column, time)
        for place, row in shown.iterrows():
            self.found += [(int(place), name, int(row[name])) for name in TIMES.values() if not pd.isna(row[name])]
        acted = self.acted[self.acted["kind"].notna() & (self.acted["at"] <= self.end)]
        for (user, item), mine in acted.groupby(["user", "item"]):
            of_pair = shown[(shown["user"] == user) & (shown["item"] == item)]
            clicks: list[tuple[tuple[int, ...], int, int]] = []  # (order, time, place)
            for place, row in of_pair.iterrows():
                if not pd.isna(row["click_at"]):
                    later = self.settings.impressions.click_time
                    first = (row["click_at"] + self.skew, 1) if later else (row["at"], 0)
                    clicks.append(((*map(int, first), *_ids(row)), int(row["click_at"]), int(place)))
            for row in mine[mine["kind"] == "click"].itertuples():
                latest = self._latest(of_pair, row.at)
                if latest is None:
                    self._count("click", "no_impression")
                elif row.at - self.shown.at[latest, "at"] > self.windows["click"]:
                    self._count("click", "outside_window")
                else:
                    self._count("click", "attributed")
                    clicks.append(((row.at + self.skew, 1, -1, -1), row.at, latest))
                    self.found.append((latest, "click_at", row.at))
            for row in mine[mine["kind"] != "click"].itertuples():
                before = [click for click in clicks if click[0][0] <= row.at + self.skew]
                if self._latest(of_pair, row.at) is None:
                    self._count(row.kind, "no_impression")
                elif not before:
                    self._count(row.kind, "no_click")
                else:
                    _, at, place = max(before)
                    if row.at - at > self.windows[row.kind]:
                        self._count(row.kind, "outside_window")
                    else:
                        self._count(row.kind, "attributed")
                        self.found.append((place, TIMES[row.kind], row.at))

    def _latest(self, of_pair: pd.DataFrame, at: int) -> int | None:
        before = of_pair[of_pair["at"] <= at + self.skew]
        if before.empty:
            return None
        return int(max(before.iterrows(), key=lambda entry: (int(entry[1]["at"]), *_ids(entry[1])))[0])

    def _count(self, kind: str, outcome: str) -> None:
        counts = self.outcomes.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def _label(self) -> None:
        """Give each impression the first label of all its copies within its own reach, and find the copies."""
        is_global = self.world.duplicates == "global"
        times: dict[Any, dict[str, list[int]]] = {}
        for place, name, at in self.found:
            times.setdefault(self._copy(place, is_global), {}).setdefault(name, []).append(at)
        click = self.windows["click"]
        reach = {
            "click_at": click,
            "daction_at": click + self.windows["cart"],
            "conversion_at": click + self.windows["purchase"],
        }
        order = sorted(
            (place for place, row in self.shown.iterrows() if row["status"] == "good"),
            key=lambda place: (int(self.shown.at[place, "at"]), self.shown.at[place, "user"], self.shown.at[place, "item"], int(self.shown.at[place, "page"])),
        )  # fmt: skip
        labels: dict[Any, dict[str, int | None]] = {}
        seen = set()
        for place in order:
            own_id = self.shown.at[place, "impression_id"]
            key = own_id if is_global else (self.shown.at[place, "page"], self.shown.at[place, "user"], own_id)
            if key in seen:
                self.shown.at[place, "status"] = "duplicate_impression"
                continue
            seen.add(key)
            at, mine = int(self.shown.at[place, "at"]), times.get(self._copy(place, is_global), {})
            # The first time of all decides, whether it is in reach or not.
            first = {name: min(mine.get(name, [NEVER])) for name in reach}
            in_reach = {name: first[name] <= at + reach[name] for name in reach}
            labels[place] = {name: first[name] if in_reach[name] and in_reach["click_at"] else None for name in reach}
        for name in TIMES.values():
            column = [labels.get(place, {}).get(name) for place in self.shown.index]
            self.shown[name] = pd.Series(column, index=self.shown.index, dtype="object")

    def _copy(self, place: Any, is_global: bool) -> tuple[Any, ...]:
        row = self.shown.loc[place]
        if is_global:
            return row["impression_id"], row["user"], row["item"]
        page = f"none {place}" if pd.isna(row["page"]) else row["page"]
        return page, row["user"], row["impression_id"]


def _ids(row: Any) -> tuple[int, int]:
    return int(row["impression_id"]), -1 if pd.isna(row["page"]) else int(row["page"])


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return None
    return value if isinstance(value, str) else int(value)
