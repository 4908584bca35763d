"""An alert at the head of a page."""

from typing import NamedTuple

#: Levels of an alert: classes of style.css.
BAD, FAIR = "bad", "fair"
#: Below so many positives a rate or an AUC is uncertain.
FEW_POSITIVES = 100


class PageAlert(NamedTuple):
    """Something wrong or doubtful."""

    level: str  # BAD | FAIR
    text: str
    section: str  # the id of the section that shows it
