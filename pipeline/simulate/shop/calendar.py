"""The days of the simulated shop, and the windows in which its actions belong to an impression.

conf/source/simulated_shop.yaml gives jobs.preprocess the same boundaries and windows; tests compare the two.
"""

from datetime import UTC, datetime

import numpy as np

from pipeline.config.events import CLICK, MS_PER_S, PURCHASE

DAY_MS = 86_400 * MS_PER_S
START_MS = round(datetime(2024, 5, 1, tzinfo=UTC).timestamp()) * MS_PER_S
#: Days with impressions: seven of train, one of validation, one of test, one after them.
DAYS = 10
SPLIT_DAYS = {"train": (0, 7), "validation": (7, 8), "test": (8, 9), "later": (9, DAYS)}
#: The actions log goes on until every window of the last impression has closed.
ACTIONS_END_MS = START_MS + (DAYS + 1) * DAY_MS + 2 * 3600 * MS_PER_S
#: A click's window after the impression, and the others' after the click.
CART, WISH = "cart", "wish"
WINDOWS_MS = {CLICK: 3600 * MS_PER_S, CART: DAY_MS, WISH: DAY_MS, PURCHASE: DAY_MS}
#: From this day on the users have the tastes of the test period.
FIRST_LATER_DAY = 8
#: How many page views begin in each hour of a day, relative to the others.
HOURS = np.array([3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 6, 6, 7, 8, 10, 12, 13, 12, 9, 5], np.float64)


def name_of_day(day: int) -> str:
    """Write a day by its number, as 2024-05-01."""
    return datetime.fromtimestamp((START_MS + day * DAY_MS) / MS_PER_S, UTC).strftime("%Y-%m-%d")


def days_of(at_ms_N: np.ndarray) -> np.ndarray:
    """Return the number of the day of each time, int64 [N]; day 0 begins at START_MS."""
    return (at_ms_N - START_MS) // DAY_MS
