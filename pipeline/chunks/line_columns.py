"""The columns of `Parsed.line_table` [L, LINE_COLUMNS], and the bits of its labels."""

#: END excludes the line feed; [START, END) and VALUES_END are positions in the chunk's text and in its values.
START, END, REASON, KEY, HAS_KEY, SAMPLE_ID, LABEL_FLAGS, MISMATCH, VALUES_END, UNKNOWN, REPEATED = range(11)
LINE_COLUMNS = 11
CLICK_BIT, BUY_BIT, DACTION_BIT = 1, 2, 4  # the last in event logs only: Ali-CCP's dactions are in a file of their own
