"""Options of a registered function or class, as YAML gives them: its keyword-only parameters, checked by their types."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pipeline.errors import InputError
from training.model.graph import Graph, Head, Query


def check_options(target: Callable[..., Any], given: Mapping[str, Any], key: str, graph: Graph) -> None:
    """Raise InputError where `given` lacks an option of `target`, or has one that `target` does not take as it is.

    A number must be above 0, a Head must be one of the heads of `graph`.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function)
    options = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in given:
        if name not in options:
            raise InputError(f"{key}: {name} is not an option; it takes {', '.join(options) or 'none'}.")
    for name, parameter in options.items():
        if name in given:
            _check_value(given[name], hints[name], f"{key}: {name}={given[name]}", graph)
        elif parameter.default is inspect.Parameter.empty:
            raise InputError(f"{key}: the option {name} is missing; it takes {', '.join(options)}.")


def _check_value(value: Any, hint: Any, key: str, graph: Graph) -> None:
    if hint is Head and value not in graph.heads:
        raise InputError(f"{key} is not a head of the model; add it to model.graph.heads.")
    if hint in (Head, Query):
        if not isinstance(value, Query):
            raise InputError(f"{key} is not a statement such as `click`.")
    elif hint in (int, float):
        fits = isinstance(value, int) or (hint is float and isinstance(value, float))
        if not fits or isinstance(value, bool) or not 0 < value < float("inf"):
            raise InputError(f"{key} is not {'a whole' if hint is int else 'a'} number above 0.")
    elif hint == list[int]:
        if not isinstance(value, list) or not value:
            raise InputError(f"{key} is not a list of widths such as [128, 64].")
        for width in value:
            _check_value(width, int, key, graph)
    else:
        raise TypeError(f"An option of type {hint} cannot be checked; use int, float, list[int], Query or Head.")
