"""The action log: impressions that were followed by an action that counts as a daction (DESIGN §3.2)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.chunks.sources import ACTIONS, SourceFile
from pipeline.errors import InputError

_ACTION_COLUMNS = {"sample_id": pa.int64(), "action": pa.string(), "delay_seconds": pa.float64()}


def acted_ids(sources: Sequence[SourceFile], period: str, actions: Sequence[str]) -> np.ndarray:
    """Read the sorted distinct sample ids of a period with one of `actions`.

    Raises InputError for a file that is no action log, and for an action that never occurs in the period.
    """
    found = [np.empty(0, np.int64)]
    names: set[str] = set()
    for source in sources:
        if source.table == ACTIONS and source.period == period:
            found += _ids_in(source, pa.array(actions, pa.string()), names)
    for action in actions:
        if action not in names:
            raise InputError(
                f"labels.daction names {action}, and the {period} action log has only {', '.join(sorted(names)) or 'no row'}; "
                "correct the name, or leave it out."
            )
    return np.unique(np.concatenate(found))


def _ids_in(source: SourceFile, actions: pa.Array, names: set[str]) -> list[np.ndarray]:
    """Read the sample ids of `actions` in one file; add every action that occurs in it to `names`."""
    ids = []
    read = pacsv.ReadOptions(column_names=list(_ACTION_COLUMNS), block_size=8 << 20)
    convert = pacsv.ConvertOptions(column_types=_ACTION_COLUMNS)
    try:
        with source.open() as stream, pacsv.open_csv(stream, read_options=read, convert_options=convert) as batches:
            for batch in batches:
                names.update(pc.unique(batch.column("action")).to_pylist())
                ids.append(batch.column("sample_id").filter(pc.is_in(batch.column("action"), actions)).to_numpy())
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise InputError(
            f"{source.path} is not an action log of sample_id,action,delay_seconds ({str(error).splitlines()[0]}); "
            "repair it, or set labels.daction=[] to do without."
        ) from error
    return ids
