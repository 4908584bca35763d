"""Score requests with an exported model: raw values in, probabilities out. Needs numpy, torch or onnxruntime, and this folder.

    model = ExportedModel(".")
    model.predict({"user_id": "1001", …}, [{"item_id": "7", …}, …])["p_cvr"]

A value is an id (a number or its text), a list of ids with `<field>__weight` beside it where the field is weighted, a
number, or a list of numbers; null or nothing where it is missing. schema.json lists the fields.
"""

import itertools
import json
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np

MISSING, OUT_OF_VOCABULARY, RESERVED_ROWS = 0, 1, 2
LARGEST_ID = 2**63 - 1
LOG_ODDS_MARGIN = 1e-15  # a probability is kept this far from 0 and 1 before its log-odds are taken
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
WHOLE_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})\Z")


class RequestError(ValueError):
    """A request that cannot be scored; the message names the field and the rule."""


class ExportedModel:
    """An export, ready to score. Threads may share one."""

    def __init__(self, folder: str | Path, runtime: str | None = None) -> None:
        """Load the graph for `runtime`: aoti, pt2 or onnx; None takes the first of these that is there."""
        self.folder = Path(folder)
        self.schema = json.loads((self.folder / "schema.json").read_text())
        self.outputs = self.schema["outputs"]
        self._texts, self._nulls = self.schema["ids"]["texts"], set(self.schema["ids"]["nulls"])
        self._fields = {
            scope: [f for f in self.schema["fields"] if f["scope"] == scope] for scope in ("context", "candidate")
        }
        self._keys = {scope: {k for f in fields for k in keys_of(f)} for scope, fields in self._fields.items()}
        self._rows_of = {f["name"]: self._lookup(f) for f in self.schema["fields"] if f["form"] == "id"}
        self.runtime = runtime or next(name for name in ("aoti", "pt2", "onnx") if name in self.schema["files"])
        self._curves = self._calibrator()
        self._run = self._loaded(self.folder / self.schema["files"][self.runtime])

    def predict(self, context: dict[str, Any], candidates: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return output → float32, one for each candidate. Raises RequestError."""
        if not isinstance(candidates, list) or not candidates:
            raise RequestError("candidates must be a list of one or more objects")
        columns = self._encode("context", [context]) | self._encode("candidate", candidates)
        columns["context_of_impression"] = np.zeros(len(candidates), np.int64)
        found = self._run({name: columns[name] for name in self.schema["inputs"]})
        return {name: calibrated(values, self._curves.get(name)) for name, values in found.items()}

    def _calibrator(self) -> dict[str, Any]:
        """Return output → curve; none where the export is not calibrated."""
        if not self.schema["calibrator"]:
            return {}
        return dict(json.loads((self.folder / self.schema["calibrator"]).read_text())["curves"])

    def _encode(self, scope: str, records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        for record in records:
            if not isinstance(record, dict):
                raise RequestError(f"a {scope} is an object of fields, not {type(record).__name__}")
            if not record.keys() <= self._keys[scope]:
                raise RequestError(f"{sorted(record.keys() - self._keys[scope])[0]} is no field of a {scope}")
        columns: dict[str, np.ndarray] = {}
        for field in self._fields[scope]:
            name, values = field["name"], column_of(records, field["name"])
            if field["form"] == "vector":
                columns[name] = vectors(name, values, field["width"])
            elif field["form"] != "id":
                columns[name] = optional_numbers(name, values)
                if field["form"] == "bucket":
                    columns[name] = buckets(columns[name], field["boundaries"])
            elif field["many"]:
                columns[f"{name}__length"], flat = split(name, values)
                columns[name] = self._rows_of[name](self._ids(name, flat))
                if field["weighted"]:
                    lengths, weights = split(f"{name}__weight", column_of(records, f"{name}__weight"))
                    if not np.array_equal(lengths, columns[f"{name}__length"]):
                        raise RequestError(f"{name}__weight must have one weight for each value of {name}")
                    columns[f"{name}__weight"] = numbers(f"{name}__weight", weights)
            else:
                there = None
                if self._nulls:
                    there = [not self._is_missing(value) for value in values]
                elif None in values:
                    there = [value is not None for value in values]
                present = values if there is None else list(itertools.compress(values, there))
                columns[name] = self._rows_of[name](self._ids(name, present))
                if there is not None:
                    columns[name], found = np.full(len(values), MISSING, np.int64), columns[name]
                    columns[name][np.array(there)] = found
        return columns

    def _is_missing(self, value: Any) -> bool:
        return value is None or (bool(self._nulls) and isinstance(value, str) and value in self._nulls)

    def _ids(self, name: str, values: list[Any]) -> np.ndarray:
        """Return int64, the raw ids of values that are there: at once where all are plain texts, else one by one."""
        try:
            joined = " ".join(values)
            if (
                values
                and joined.isascii()
                and joined.replace(" ", "0").isdigit()
                and not (self._texts and "0" in {v[0] for v in values})
            ):
                found = np.fromstring(joined, np.int64, sep=" ")
                if len(found) == len(values) and found.max() < 10**18:
                    return found
        except (TypeError, IndexError):
            pass
        return np.array([self._id(name, value) for value in values], np.int64)

    def _id(self, name: str, value: Any) -> int:
        if self._is_missing(value):
            raise RequestError(f"{name}: {value!r} means missing, and stands in a list")
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise RequestError(f"{name}: {value!r} is no id")
        if self._texts and not (isinstance(value, int) and value >= 0):
            if WHOLE_NUMBER.match(str(value)) and int(value) <= LARGEST_ID:
                return int(value)
            import xxhash

            return int(xxhash.xxh64_intdigest(str(value).encode("utf-8", "surrogatepass"), 42)) & LARGEST_ID
        if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 4000):
            raise RequestError(f"{name}: {value[:60]!r} is neither a whole number nor the text of one")
        if not 0 <= int(value) <= LARGEST_ID:
            raise RequestError(f"{name}: {str(value)[:60]} is outside 0 to {LARGEST_ID}")
        return int(value)

    def _lookup(self, field: dict[str, Any]) -> Any:
        """Return a function from raw ids to rows of the field's table."""
        if field["hash_buckets"]:
            return lambda ids: hashed(ids, field["hash_buckets"])
        parts = {
            part: np.asarray(np.load(self.folder / path, mmap_mode="r")) for part, path in field["vocabulary"].items()
        }
        if "direct" in parts:
            return lambda ids: direct_rows(ids, parts["direct"])
        return lambda ids: sorted_rows(ids, parts["ids"], parts["rows"])

    def _loaded(self, path: Path) -> Any:
        """Return a function from columns to output → float32."""
        if self.runtime == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return lambda columns: dict(zip(self.outputs, session.run(list(self.outputs), columns), strict=True))
        import torch

        is_compiled = self.runtime == "aoti"
        program: Any = torch._inductor.aoti_load_package(str(path)) if is_compiled else torch.export.load(path).module()

        def run(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                found = program({name: torch.from_numpy(column) for name, column in columns.items()})
            return {name: value.numpy() for name, value in found.items()}

        return run


def calibrated(scores: np.ndarray, curve: dict[str, Any] | None) -> np.ndarray:
    """Apply Platt's line on log-odds, or the straight lines between the corners of a rising curve; None changes nothing."""
    if curve is None:
        return scores
    if "slope" not in curve:
        return np.interp(scores, curve["predicted"], curve["calibrated"]).astype(scores.dtype)
    wide = np.clip(scores.astype(np.float64), LOG_ODDS_MARGIN, 1.0 - LOG_ODDS_MARGIN)
    log_odds = curve["slope"] * np.log(wide / (1.0 - wide)) + curve["intercept"]
    return (1.0 / (1.0 + np.exp(-log_odds))).astype(scores.dtype)


def keys_of(field: dict[str, Any]) -> list[str]:
    """Return the keys of a field in a request."""
    return [field["name"]] + [f"{field['name']}__weight"] * field["weighted"]


def column_of(records: list[dict[str, Any]], name: str) -> list[Any]:
    """Return the value of each record, None where it has none."""
    try:
        return list(map(operator.itemgetter(name), records))
    except KeyError:
        return [record.get(name) for record in records]


def split(name: str, values: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """Return the length of each list, int64, and the values of all."""
    if not set(map(type, values)) <= {list}:
        wrong = [value for value in values if not (value is None or isinstance(value, list))]
        if wrong:
            raise RequestError(f"{name}: {str(wrong[0])[:60]} is no list")
        values = [value or [] for value in values]
    return np.fromiter(map(len, values), np.int64, len(values)), list(itertools.chain.from_iterable(values))


def numbers(name: str, values: list[Any]) -> np.ndarray:
    """Return finite float32."""
    if not set(map(type, values)) <= {int, float}:
        raise RequestError(f"{name}: {next(v for v in values if type(v) not in (int, float))!r} is no number")
    try:
        wide = np.array(values, np.float64)
    except OverflowError:
        wide = np.array([np.inf])
    if len(wide) and not np.abs(wide).max() <= LARGEST_FLOAT32:  # NaN too
        raise RequestError(f"{name} has a number that is not finite in float32; a missing one is null")
    return wide.astype(np.float32)


def optional_numbers(name: str, values: list[Any]) -> np.ndarray:
    """Return float32, NaN where missing."""
    there = np.array([value is not None for value in values])
    found = np.full(len(values), np.nan, np.float32)
    found[there] = numbers(name, [value for value in values if value is not None])
    return found


def vectors(name: str, values: list[Any], width: int) -> np.ndarray:
    """Return float32 [N, width], NaN where missing."""
    lengths, flat = split(name, values)
    if not np.isin(lengths, (0, width)).all():
        raise RequestError(f"{name} must have {width} numbers")
    found = np.full((len(values), width), np.nan, np.float32)
    found[lengths > 0] = numbers(name, flat).reshape(-1, width)
    return found


def buckets(values: np.ndarray, boundaries: list[float]) -> np.ndarray:
    """Return the row of each number; a boundary belongs to the bucket above it."""
    found = np.searchsorted(np.array(boundaries, np.float32), np.nan_to_num(values), side="right") + RESERVED_ROWS
    return np.where(np.isnan(values), MISSING, found).astype(np.int64)


def direct_rows(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the row of each id from a table by id, whose last entry is the row out of vocabulary."""
    return rows.take(ids, mode="clip").astype(np.int64)


def sorted_rows(ids: np.ndarray, known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the row of each id from the sorted ids of the vocabulary."""
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, rows[place], OUT_OF_VOCABULARY).astype(np.int64)


def hashed(ids: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the row of each id by the finalizer of splitmix64, modulo the buckets."""
    word = ids.astype(np.uint64)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word = word ^ (word >> np.uint64(31))
    return (word % np.uint64(num_buckets)).astype(np.int64) + RESERVED_ROWS
