"""Tables of each head's own: ESMM-NS (ESMM §3.1) shares no embedding between its networks.

The tables of head 0 have the names of their fields, those of head k `<field>@<k>`. A batch repeats its bags once a head, so
that a table is looked up and learns like any other:

    fields         user_id  item_id
    tables         user_id  item_id  user_id@1  item_id@1        (context fields and impression fields apart)
    pooled [N, D]  |– head 0 ––––––|–– head 1 ––––––––––|
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.dataset.manifest import ManifestField

_MARK = "@"  # no field's name has it


def tables_of(fields: Sequence[ManifestField], num_copies: int) -> tuple[ManifestField, ...]:
    """Return a field for each table, those of head 0 first: `fields` themselves, then under the names of their copies."""
    copies = [replace(entry, name=table_name(entry.name, copy)) for copy in range(1, num_copies) for entry in fields]
    return (*fields, *copies)


def table_name(field: str, copy: int) -> str:
    """Return the name of the table of `field` for the head number `copy`."""
    return f"{field}{_MARK}{copy}" if copy else field


def field_of(table: str) -> str:
    """Return the field whose rows `table` holds."""
    return table.partition(_MARK)[0]
