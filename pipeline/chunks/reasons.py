"""The reasons for which a line is rejected, in order of precedence, and the rule that a line with each breaks."""

#: In order of precedence; a line's reason is a position here, 0 for none.
REASONS = (
    "",
    "malformed_line",
    "bad_label",
    "bad_context_key",
    "bad_feature",
    "feature_count_mismatch",
    "conversion_without_click",
    "missing_context",
    "duplicate_impression",
    "duplicate_context",
    "missing_item",
)
#: Manifests name these only where a line has them, so that those of earlier logs stay what they are.
NEWER_REASONS = ("missing_item",)
GOOD, MALFORMED_LINE, BAD_LABEL, BAD_CONTEXT_KEY, BAD_FEATURE, COUNT_MISMATCH, WITHOUT_CLICK = range(7)
MISSING_CONTEXT, DUPLICATE_IMPRESSION, DUPLICATE_CONTEXT = range(7, 10)

#: source → reason → the rule that a rejected line breaks, in words; docs/dataset.md and docs/events.md have all of it.
_RULES = {
    "aliccp": {
        "malformed_line": "a line has 6 columns in sample_skeleton and 3 in common_features, its numbers are whole numbers, and it has "
        "source.max_line_bytes at most",
        "bad_label": "click and buy are 0 or 1",
        "bad_context_key": "a key is 16 digits of 0-9a-f",
        "bad_feature": "a feature is name\\x02id\\x03weight, its id a whole number and its weight a finite one",
        "feature_count_mismatch": "num_features counts the features of the line",
        "conversion_without_click": "what was bought was clicked",
        "missing_context": "an impression's key has a line in common_features of its period",
        "duplicate_impression": "an impression id stands once in its context, or with checks.duplicates=global once in its period",
        "duplicate_context": "a key has one line in common_features of its period",
    },
    "events": {
        "malformed_line": "a row can be parsed, and has a time, a user, an item and an id",
        "bad_label": "a label is 0 or 1, false or true, and its time, if there is one, does not come before its impression",
        "bad_context_key": "a row has its context",
        "bad_feature": "a list has no gaps, and as many finite weights as values; a vector has as many finite numbers as its width",
        "duplicate_impression": "an impression id stands once in its context, or with checks.duplicates=global once in the log",
        "missing_item": "every column of the item has a value, so that actions can be matched with the row",
    },
}


def rules_of(source: str) -> dict[str, str]:
    """Return reason → rule for the reasons that source.name=`source` can give, in order of precedence."""
    return _RULES[source]
