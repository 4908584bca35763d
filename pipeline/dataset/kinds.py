"""The kinds of fields, as a dataset stores them: what both pipeline/ and training/ must know of a kind.

A field's column holds an index into its embedding table (INDEX), or a number that goes into the towers itself (NUMBER).
Whoever reads a dataset asks for the form, not for the kind, so a new kind of a known form changes no reader.
How pipeline/ makes the column stands in pipeline/features/kinds/.
"""

CATEGORICAL, NUMERIC = "categorical", "numeric"

INDEX, NUMBER = "index", "number"
FORMS = (INDEX, NUMBER)

#: Kind of field → the form of its column.
STORED_AS = {
    CATEGORICAL: INDEX,  # hashed fields too: they are categorical fields with hash_buckets
    NUMERIC: NUMBER,
}
