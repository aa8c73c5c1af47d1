"""The rule table as two Great Expectations suites, and their opinion of the same photo table.

Great Expectations leaves empty cells out of every column expectation. So a photo that could not be decoded,
whose measures are empty, is caught by its own expectation first; the others look at decoded photos only, and
further ones demand that nothing is empty there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from photoflux.photos.rules import FILE, REJECT, SET, UNMEASURED, Row, Rule

if TYPE_CHECKING:
    import pandas
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context import EphemeralDataContext

PHOTO_SUITE, SET_SUITE = "photos_v1", "photo_set_v1"


@dataclass(frozen=True)
class Opinion:
    """What the suites found: the same (file, rule code) pairs as `Verdict.failures`, and a line per
    expectation.
    """

    failures: frozenset[tuple[str, str]]
    worst: str
    expectations: list[dict[str, Any]]


def expect(photos: Sequence[Row], whole: Mapping[str, Any], *, rules: Sequence[Rule]) -> Opinion:
    """Run both suites: `photos` has one row per photo, `whole` is the one row of the set (needs pandas; ≈ 5
    s).
    """
    import pandas as pd

    context = _context()
    table = pd.DataFrame([_plain(row) for row in photos])
    one = pd.DataFrame([{"file": "", **whole}])
    results = [
        _run(context, PHOTO_SUITE, _photo_expectations(rules), table),
        _run(context, SET_SUITE, _set_expectations(rules), one),
    ]
    lines = [_line(result) for suite in results for result in suite.results]
    return Opinion(
        failures=frozenset((name, line["rule"]) for line in lines for name in line["files"]),
        worst=_worst(results),
        expectations=sorted(lines, key=lambda line: (line["level"], line["rule"], line["column"])),
    )


def _context() -> EphemeralDataContext:
    """In memory, silent, and without a word to anyone."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _run(
    context: EphemeralDataContext, name: str, expectations: list[Any], table: pandas.DataFrame
) -> ExpectationSuiteValidationResult:
    import great_expectations as gx

    asset = context.data_sources.add_or_update_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add_or_update(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
    definition = context.validation_definitions.add_or_update(definition)
    return definition.run(
        batch_parameters={"dataframe": table},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["file"]},
    )


def _photo_expectations(rules: Sequence[Rule]) -> list[Any]:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    decoded: dict[str, Any] = {"row_condition": Column("decoded") == True}  # noqa: E712
    photo_rules = [rule for rule in rules if rule.level != SET]
    filled: dict[str, Any] = {
        "severity": "critical",
        "meta": {"rule": UNMEASURED.code, "level": UNMEASURED.level},
        **decoded,
    }
    measured = dict.fromkeys(rule.column for rule in photo_rules)
    return [
        *(_expectation(rule, {} if rule.level == FILE else decoded) for rule in photo_rules),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column, **filled) for column in measured),
    ]


def _set_expectations(rules: Sequence[Rule]) -> list[Any]:
    return [_expectation(rule, {}) for rule in rules if rule.level == SET]


def _expectation(rule: Rule, condition: Mapping[str, Any]) -> Any:
    import great_expectations.expectations as gxe

    common: dict[str, Any] = {
        "column": rule.column,
        "severity": "critical" if rule.severity == REJECT else "warning",
        "meta": {"rule": rule.code, "level": rule.level},
        **condition,
    }
    if rule.allowed is not None:
        return gxe.ExpectColumnValuesToBeInSet(value_set=list(rule.allowed), **common)
    return gxe.ExpectColumnValuesToBeBetween(min_value=rule.low, max_value=rule.high, **common)


def _line(result: Any) -> dict[str, Any]:
    """One expectation's outcome in plain values, keyed by the rule in its `meta`: result order is not suite
    order.
    """
    config = result.expectation_config
    failed = result.result.get("unexpected_index_list") or []
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"expectation {config.meta['rule']}: {result.exception_info.get('exception_message')}")
    return {
        "rule": config.meta["rule"],
        "level": config.meta["level"],
        "expectation": config.type,
        "column": config.kwargs["column"],
        "severity": str(getattr(config.severity, "value", config.severity)),
        "success": bool(result.success),
        "files": sorted(str(row["file"]) for row in failed),
    }


def _worst(results: Sequence[ExpectationSuiteValidationResult]) -> str:
    """`ok`, `warning` or `critical`; `success` alone is False for the mildest warning too."""
    found = [result.get_max_severity_failure() for result in results]
    names = {str(getattr(one, "value", one)) for one in found if one is not None}
    return next((name for name in ("critical", "warning") if name in names), "ok")


def _plain(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "facts"}
