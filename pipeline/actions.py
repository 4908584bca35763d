"""The action log: which impressions were followed by an action that counts as a daction (DESIGN §3.2)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.manifest import InputError
from pipeline.source import ACTIONS, SourceFile

_COLUMNS = {"sample_id": pa.int64(), "action": pa.string(), "delay_seconds": pa.float64()}


def acted_ids(sources: Sequence[SourceFile], period: str, actions: Sequence[str]) -> np.ndarray:
    """The sorted distinct sample ids of a period with one of `actions`; InputError for a file that is no action log."""
    found = [np.empty(0, np.int64)]
    for source in sources:
        if source.table == ACTIONS and source.period == period:
            found += _ids_in(source, pa.array(actions, pa.string()))
    return np.unique(np.concatenate(found))


def _ids_in(source: SourceFile, actions: pa.Array) -> list[np.ndarray]:
    read = pacsv.ReadOptions(column_names=list(_COLUMNS), block_size=8 << 20)
    convert = pacsv.ConvertOptions(column_types=_COLUMNS)
    try:
        with source.open() as stream, pacsv.open_csv(stream, read_options=read, convert_options=convert) as batches:
            return [
                batch.column("sample_id").filter(pc.is_in(batch.column("action"), actions)).to_numpy()
                for batch in batches
            ]
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise InputError(
            f"{source.path} is not an action log of sample_id,action,delay_seconds ({str(error).splitlines()[0]}); "
            "repair it, or set labels.daction=[] to do without."
        ) from error
