"""A slow reading of CSV, byte by byte: docs/events.md's rules of rows, quotes and line breaks."""

Field = str | None  # None: empty, without quotes
Row = list[Field] | bytes  # bytes: a row that is rejected, whole


def read_csv(
    text: bytes, num_columns: int, delimiter: bytes = b",", quote: bytes = b'"', escape: bytes = b'"'
) -> list[Row]:
    """Return every row that is not blank."""
    rows: list[Row] = []
    place = 0
    while place < len(text):
        fields, end, behind, is_bad = _row(text, place, delimiter, quote, escape)
        is_bad = is_bad or len(fields) != num_columns
        line_end = min((at for at in (text.find(b"\n", place), text.find(b"\r", place)) if at >= 0), default=len(text))
        if is_bad and line_end < end:
            end, behind = line_end, line_end + (2 if text[line_end : line_end + 2] == b"\r\n" else 1)
        line = text[place:end]
        if len(fields) > 1 or line.strip(bytes(range(33))):
            try:
                line.decode()
            except UnicodeDecodeError:
                is_bad = True
            rows.append(line if is_bad else [None if field is None else field.decode() for field in fields])
        place = behind
    return rows


def _row(
    text: bytes, place: int, delimiter: bytes, quote: bytes, escape: bytes
) -> tuple[list[bytes | None], int, int, bool]:
    """Return (fields, the end of the row, where the next begins, whether a quote is wrong)."""
    fields: list[bytes | None] = []
    is_bad = False
    while True:
        if quote and text[place : place + 1] == quote:
            value, place, closed = b"", place + 1, False
            while place < len(text):
                byte, following = text[place : place + 1], text[place + 1 : place + 2]
                if byte == escape and (escape != quote or following == quote):
                    value, place = value + following, place + 2
                elif byte == quote:
                    closed, place = True, place + 1
                    break
                else:
                    value, place = value + byte, place + 1
            place = min(place, len(text))
            is_bad = is_bad or not closed
            fields.append(value)
        else:
            begin = place
            while (
                place < len(text) and text[place] not in b"\r\n" and text[place : place + len(delimiter)] != delimiter
            ):
                place += 1
            fields.append(text[begin:place] or None)
        while place < len(text) and text[place] not in b"\r\n" and text[place : place + len(delimiter)] != delimiter:
            is_bad, place = True, place + 1  # text behind a closing quote
        if place < len(text) and text[place : place + len(delimiter)] == delimiter:
            place += len(delimiter)
            continue
        width = 2 if text[place : place + 2] == b"\r\n" else 1
        return fields, place, place + width, is_bad
