"""Labels that are columns of the impression's own row: whether a click, daction or purchase followed, and when.

A label without a time is final, and counts at the time of its impression. A label with a time counts within its window,
as an action of the actions table does: a click's after the impression, the others' after the click.
"""

from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F

from pipeline.config.events import CLICK, MS_PER_S, PURCHASE, EventsSettings
from pipeline.events.read import Texts

#: Columns that say why a label that the row has does not count: no_click or outside_window.
LOST = ("lost_click", "lost_daction", "lost_conversion")
#: A flag, in lower case: as integers, floats, decimals, bools and their texts have it (pandas writes True and 1.0).
_TRUE, _FALSE = r"^(1(\.0*)?|true)\z", r"^(0(\.0*)?|false)\z"


class OwnLabels:
    """The labels of a frame of impressions, as columns of its rows say them."""

    def __init__(self, settings: EventsSettings, texts: Texts, at: Column) -> None:
        self._settings, self._texts, self._at = settings, texts, at
        self._skew_ms = settings.clock_skew_s * MS_PER_S
        columns = settings.impressions.label_columns()
        #: (column, whether its value is none that a label has)
        self.defects: list[tuple[str, Column]] = []
        click, lost_click = self._label(CLICK, at) if CLICK in columns else (_never(), _no_reason())
        followers = {kind: self._label(kind, F.coalesce(click, at), click) for kind in columns if kind != CLICK}
        conversion, lost_conversion = followers.pop(PURCHASE, (_never(), _no_reason()))
        dactions = [found for found, _ in followers.values()]
        daction = F.least(*dactions, _never()) if dactions else _never()
        lost_daction = F.coalesce(*(lost for _, lost in followers.values()), _no_reason())
        self.is_clicked = click.isNotNull()
        self.is_bad = reduce(Column.__or__, (is_bad for _, is_bad in self.defects), F.lit(False))
        found = {
            "click_at": click,
            "daction_at": daction,
            "conversion_at": conversion,
            "lost_click": lost_click,
            "lost_daction": lost_daction,
            "lost_conversion": lost_conversion,
        }
        self.columns = [column.alias(name) for name, column in found.items()]

    def _label(self, kind: str, base: Column, click: Column | None = None) -> tuple[Column, Column]:
        """Return (the time of a label that counts, why one does not count); `base` is when its window begins."""
        flag_name, time_name = self._settings.impressions.label_columns()[kind]
        told, at = F.lit(True), base
        if flag_name:
            flag = F.lower(self._texts.of(flag_name))
            told = F.coalesce(flag.rlike(_TRUE), F.lit(False))
            is_known = told | F.coalesce(flag.rlike(_FALSE), F.lit(False))
            self.defects.append((flag_name, ~is_known))
        if time_name:
            text = self._texts.of(time_name)
            at = self._texts.milliseconds(time_name, self._settings.impressions)
            told = told & text.isNotNull() if not flag_name else told
            is_early = at < F.coalesce(base, self._at) - self._skew_ms
            self.defects.append((time_name, told & F.coalesce(at.isNull() | is_early, F.lit(True))))
        in_time = at - base <= self._settings.window_ms(kind)
        lost = F.when(told & ~in_time, "outside_window")
        if click is not None:
            lost = F.when(told & click.isNull(), "no_click").otherwise(lost)
            in_time = in_time & click.isNotNull()
        return F.when(told & in_time, at), lost


def _never() -> Column:
    return F.lit(None).cast("long")


def _no_reason() -> Column:
    return F.lit(None).cast("string")
