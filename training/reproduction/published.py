"""The figures that the papers print, row by row.

ESMM: Ma et al., Entire Space Multi-Task Model, SIGIR 2018, arXiv 1804.07931. ESM²: Wen et al., Entire Space Multi-Task
Modeling via Post-Click Behavior Decomposition, SIGIR 2020, arXiv 1910.07099.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A figure as it is printed."""

    value: float
    std: float | None = None  # of repetitions; ESM² prints none


PublishedRows = Mapping[str, tuple[Published, ...]]


def _without_std(rows: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[Published, ...]]:
    """Return rows whose figures have no deviation."""
    return {name: tuple(map(Published, values)) for name, values in rows.items()}


#: ESMM Table 2, public dataset, AUC in percent, ten repetitions: CVR task, CTCVR task.
ESMM_TABLE_2: PublishedRows = {
    "BASE": (Published(66.0, 0.37), Published(62.07, 0.45)),
    "AMAN": (Published(65.21, 0.59), Published(63.53, 0.57)),
    "OVERSAMPLING": (Published(67.18, 0.32), Published(63.05, 0.48)),
    "UNBIAS": (Published(66.65, 0.28), Published(63.56, 0.7)),
    "DIVISION": (Published(67.56, 0.48), Published(63.62, 0.09)),
    "ESMM-NS": (Published(68.25, 0.44), Published(64.44, 0.62)),
    "ESMM": (Published(68.56, 0.37), Published(65.32, 0.49)),
}
#: ESM² Table 3: AUC of CVR, AUC of CTCVR, GAUC of CTCVR.
ESM2_TABLE_3: PublishedRows = _without_std(
    {
        "GBDT": (0.7823, 0.8059, 0.7747),
        "DNN": (0.8065, 0.8161, 0.7864),
        "DNN-OS": (0.8124, 0.8192, 0.7893),
        "ESMM": (0.8398, 0.827, 0.7906),
        "ESM2": (0.8486, 0.8371, 0.8051),
    }
)
#: ESM² Table 4, CVR, in percent: recall, precision and F1 of the top 0.1, 0.6 and 1 %.
ESM2_TABLE_4: PublishedRows = _without_std(
    {
        "GBDT": (4.382, 14.348, 6.714, 16.328, 9.894, 12.322, 27.384, 7.384, 11.631),
        "DNN": (4.938, 15.117, 7.445, 17.15, 10.495, 13.021, 28.481, 8.196, 12.729),
        "DNN-OS": (5.383, 15.837, 8.034, 17.381, 10.839, 13.353, 29.032, 8.423, 13.058),
        "ESMM": (5.813, 16.295, 8.57, 18.585, 11.577, 14.267, 29.789, 8.961, 13.777),
        "ESM2": (6.117, 17.145, 9.017, 23.492, 10.574, 14.584, 30.032, 9.034, 13.89),
    }
)
#: ESM² Table 5, CTCVR, in percent: recall, precision and F1 of the top 0.1, 0.6 and 1 %.
ESM2_TABLE_5: PublishedRows = _without_std(
    {
        "GBDT": (2.937, 0.701, 1.132, 4.87, 0.649, 1.145, 8.894, 0.531, 1.002),
        "DNN": (3.168, 0.851, 1.341, 5.269, 0.768, 1.34, 9.461, 0.643, 1.204),
        "DNN-OS": (3.382, 0.871, 1.385, 5.369, 0.801, 1.395, 9.863, 0.673, 1.26),
        "ESMM": (3.858, 0.915, 1.479, 5.504, 0.828, 1.439, 10.088, 0.691, 1.294),
        "ESM2": (4.219, 1.001, 1.618, 5.987, 0.9, 1.566, 10.991, 0.753, 1.41),
    }
)
#: ESM² Table 6, by what counts as daction: as Table 3.
ESM2_TABLE_6: PublishedRows = _without_std(
    {
        "SCart": (0.8457, 0.8359, 0.7996),
        "Wish": (0.8403, 0.8319, 0.7962),
        "SCart and Wish": (0.8486, 0.8371, 0.8051),
    }
)
