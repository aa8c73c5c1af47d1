"""The Great Expectations suites that decide in the pipeline which photos, and which sets of them, are trained on.

They are files that a data engineer edits: `photos.json` is held against a table with a row per photo, `photo_set.json`
against the one row of the set that is left; README.md beside them says what the columns are. Of an expectation that is not
met, severity `critical` rejects, `warning` warns and `info` is only reported. What it says to people is the sentence of the
rule that its `meta.rule` names, with its own bounds filled in, or `meta.message` and `meta.advice` of its own.

Great Expectations leaves empty cells out of every column expectation, so further expectations demand that nothing is empty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import InputError
from photoflux.manifest import digest
from photoflux.params import ValidateParams, as_dict
from photoflux.photos.rules import (
    PHOTO,
    REJECT,
    SET,
    UNMEASURED,
    UNMEASURED_SET,
    WARN,
    Row,
    Rule,
    rule_table,
    status_of,
)
from photoflux.photos.table import UNKNOWN
from photoflux.photos.verdict import Verdict, make_verdict, whole_row

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult
    from great_expectations.data_context import EphemeralDataContext

PHOTOS, PHOTO_SET = "photos", "photo_set"
INFO = "info"
SEVERITIES = {"critical": REJECT, "warning": WARN, "info": INFO}
SCHEMA_VERSION = 1
COLUMNS = {PHOTOS: ("file", *UNKNOWN), PHOTO_SET: tuple(whole_row([], []))}


@dataclass(frozen=True)
class Finding:
    """The result of one expectation: the rule it corresponds to, and the files that fail it (none for a set)."""

    rule: Rule
    expectation: str
    met: bool
    files: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """Whether the verdict depends on it."""
        return not self.met and self.rule.severity in (REJECT, WARN)

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule.code,
            "level": self.rule.level,
            "expectation": self.expectation,
            "column": self.rule.column,
            "severity": self.rule.severity,
            "success": self.met,
            "files": list(self.files),
        }


@dataclass(frozen=True)
class Decision:
    """The verdict of the suites, the result of each expectation, and Great Expectations' own results by suite."""

    verdict: Verdict
    findings: list[Finding]
    results: dict[str, ExpectationSuiteValidationResult]
    suites: dict[str, str]
    """Suite → SHA-256 of its file."""
    params: ValidateParams

    @property
    def rejecting(self) -> list[Rule]:
        """Rules that reject the set as a whole."""
        found = [finding.rule for finding in self.findings if finding.counts]
        return [rule for rule in found if rule.level == SET and rule.severity == REJECT]

    def as_json(self) -> dict[str, Any]:
        """The document that goes into the run: verdict, parameters and results. It names files."""
        results = {name: result.to_json_dict() for name, result in self.results.items()}
        return {
            "kind": "expectations",
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.verdict,
            "parameters": as_dict(self.params),
            "suites": self.suites,
            # NaN, a share of no photos, becomes null
            "results": json.loads(json.dumps(results), parse_constant=lambda _: None),
        }


class Suites:
    """Both suites, with the parameters of a run; needs pandas and Great Expectations, which take 4 s to import."""

    def __init__(self, folder: Path, *, params: ValidateParams) -> None:
        """Raises InputError for a suite that is missing or broken, also by a parameter that it asks for."""
        self.params = params
        self._rules = {rule.code: rule for rule in (*rule_table(params), UNMEASURED, UNMEASURED_SET)}
        self.files = {name: folder / f"{name}.json" for name in (PHOTOS, PHOTO_SET)}
        self._context = _context()
        self._suites = {name: self._read(name) for name in self.files}
        self._digests = {name: digest(file) for name, file in self.files.items()}

    def _read(self, name: str) -> ExpectationSuite:
        """The suite in a file, read entry by entry: Great Expectations itself silently skips entries it does not understand."""
        import great_expectations as gx

        file, expectations = self.files[name], []
        for number, entry in enumerate(_entries(file), 1):
            expectations.append(_expectation(file, number, entry, params=self.params))
            _check_texts(file, number, _rule(name, expectations[-1].configuration, self._rules))
        return gx.ExpectationSuite(name=name, expectations=expectations)

    def usable(self, rows: Sequence[Row]) -> list[bool]:
        """Which photos of a table are not rejected, by the suite of photos alone."""
        _, findings = self._check(PHOTOS, rows)
        broken = self._by_photo(rows, findings)
        return [status_of(broken[row["file"]]) != REJECT for row in rows]

    def decide(self, rows: Sequence[Row]) -> Decision:
        """Check a photo table against the suite of photos, and the photos that are left against the suite of the set.

        Raises InputError for an expectation that cannot be evaluated.
        """
        result, findings = self._check(PHOTOS, rows)
        results, found = {PHOTOS: result}, list(findings)

        def judge_set(whole: Row) -> list[Rule]:
            results[PHOTO_SET], of_set = self._check(PHOTO_SET, [{"file": "", **whole}])
            found.extend(of_set)
            return _unique(finding.rule for finding in found if finding.counts and finding.rule.level == SET)

        verdict = make_verdict(
            rows,
            self._by_photo(rows, findings),
            rules=_unique(finding.rule for finding in findings),
            judge_set=judge_set,
            params=self.params,
        )
        return Decision(verdict, found, results, self._digests, self.params)

    def _by_photo(self, rows: Sequence[Row], findings: Sequence[Finding]) -> dict[str, list[Rule]]:
        """The rules that each photo breaks. What could not be decoded is no photo, whatever a suite lets through."""
        broken = {
            row["file"]: _unique(one.rule for one in findings if one.counts and row["file"] in one.files)
            for row in rows
        }
        let_through = [r["file"] for r in rows if not r["decoded"] and status_of(broken[r["file"]]) != REJECT]
        return broken | {file: [self._rules["decodable"]] for file in let_through}

    def _check(self, name: str, rows: Sequence[Row]) -> tuple[ExpectationSuiteValidationResult, list[Finding]]:
        """Great Expectations' result for a table, in the suite's order, and its findings."""
        import great_expectations as gx
        import pandas as pd

        table = pd.DataFrame([{key: value for key, value in row.items() if key != "facts"} for row in rows])
        asset = self._context.data_sources.add_or_update_pandas(name).add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(
            name=name, data=batch, suite=self._context.suites.add_or_update(self._suites[name])
        )
        result = self._context.validation_definitions.add_or_update(definition).run(
            batch_parameters={"dataframe": table},
            expectation_parameters=as_dict(self.params),
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["file"]},
        )
        order = {expectation.id: place for place, expectation in enumerate(definition.suite.expectations)}
        result.results.sort(key=lambda one: order[one.expectation_config.id])
        findings = [_finding(self.files[name], name, one, self._rules) for one in result.results]
        return _without_random_ids(result, name), findings


def _context() -> EphemeralDataContext:
    """A context in memory, without progress bars and analytics."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); run from the checkout or set PHOTOFLUX_EXPECTATIONS_DIR"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: is not valid JSON ({error}); mend it, or take it from git again") from error
    entries = content.get("expectations") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: holds no expectations, so that nothing would be checked; take it from git again")
    return entries


def _expectation(file: Path, number: int, entry: Mapping[str, Any], *, params: ValidateParams) -> Any:
    from great_expectations.core.suite_parameters import parse_suite_parameter
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    given = {key: value for key, value in entry.items() if key not in ("id", "rendered_content")}
    try:
        expectation = ExpectationConfiguration(**given).to_domain_obj()
        for parameter in expectation.suite_parameter_options:
            parse_suite_parameter(parameter, as_dict(params))
    except (GreatExpectationsError, ValueError, TypeError) as error:
        raise InputError(
            f"{_where(file, number, entry.get('type'))} is broken ({_one_line(error)}); mend it"
        ) from error
    return expectation


def _check_texts(file: Path, number: int, rule: Rule) -> None:
    """Raises InputError for a message or advice with a placeholder that is not known."""
    message_fields = {*COLUMNS[PHOTO_SET if rule.level == SET else PHOTOS], "low", "high"}
    # In an advice, `files` is filled with the photos' names, if any, instead of their number.
    advice_fields = {*COLUMNS[PHOTO_SET], "low", "high", "missing", "files"}
    try:
        rule.message.format(**dict.fromkeys(message_fields, 0))
        rule.advice.format(**dict.fromkeys(advice_fields, 0))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"{_where(file, number, rule.code)} has a message or an advice with {error} in it, which nothing is known of; "
            f"a message can name {', '.join(sorted(message_fields))}"
        ) from error


def _finding(file: Path, name: str, result: Any, known_rules: Mapping[str, Rule]) -> Finding:
    """Raises InputError where the expectation could not be evaluated, for instance for a missing column."""
    config = result.expectation_config
    if why := _exception_message(result.exception_info):
        raise InputError(
            f"{_where(file, 0, config.type)} cannot be held against the photos ({_one_line(why)}); mend it"
        )
    failed = [] if result.success else result.result.get("unexpected_index_list") or []
    files = tuple(sorted({str(row["file"]) for row in failed} - {""}))
    rule = _rule(name, config, known_rules)
    if not result.success and not files and rule.level != SET:
        raise InputError(
            f"{_where(file, 0, config.type)} failed and named no photo, so that none could be left out; mend it"
        )
    return Finding(rule, config.type, bool(result.success), files)


def _exception_message(info: Mapping[str, Any]) -> str:
    """The exception's message, from either form of Great Expectations: of an expectation, or of its metrics by name."""
    infos = [info] if "raised_exception" in info else list(info.values())
    return next((str(one.get("exception_message")) for one in infos if one.get("raised_exception")), "")


def _rule(name: str, config: Any, known_rules: Mapping[str, Rule]) -> Rule:
    """An expectation as a rule: its own bounds, with message and advice of its own or of the rule it names."""
    kind, kwargs, meta = config.type, config.kwargs, config.meta or {}
    column, known = str(kwargs.get("column", "")), known_rules.get(str(meta.get("rule", "")))
    severity = SEVERITIES[str(getattr(config.severity, "value", config.severity))]
    if known and known.code in (UNMEASURED.code, UNMEASURED_SET.code):
        return replace(known, severity=severity)  # reported once, however many columns are empty
    low, high = (_number(kwargs.get(bound)) for bound in ("min_value", "max_value"))
    level = SET if name == PHOTO_SET or not _is_of_rows(kind) else PHOTO
    return Rule(
        code=str(meta.get("rule") or f"{column}_{kind.removeprefix('expect_').removeprefix('column_')}"),
        level=known.level if known and level == PHOTO and known.level != SET else level,
        severity=severity,
        column=column,
        message=str(
            meta.get("message") or (known.message if known else _default_message(level, column, kind, low, high))
        ),
        low=low,
        high=high,
        advice=str(meta.get("advice") or (known.advice if known else "")),
    )


def _is_of_rows(kind: str) -> bool:
    """Whether an expectation is one of each row, which it can name; not of the table, such as one of a mean."""
    from great_expectations.expectations import expectation
    from great_expectations.expectations.registry import get_expectation_impl

    of_rows = (
        expectation.ColumnMapExpectation,
        expectation.ColumnPairMapExpectation,
        expectation.MulticolumnMapExpectation,
    )
    return issubclass(get_expectation_impl(kind), of_rows)


def _default_message(level: str, column: str, kind: str, low: Any, high: Any) -> str:
    """A message for an expectation without one."""
    if column not in COLUMNS[PHOTO_SET if level == SET else PHOTOS] or (low is None and high is None):
        return f"does not meet {kind}{f' of {column}' if column else ''}"
    range_text = (
        "{low} to {high} is" if None not in (low, high) else "{low} or more is" if high is None else "at most {high} is"
    )
    return f"{column.replace('_', ' ')} is {{{column}}}; {range_text} expected"


def _number(bound: Any) -> Any:
    """A bound as people write it: Great Expectations makes 512.0 of 512."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _unique(rules: Any) -> list[Rule]:
    return list(dict.fromkeys(rules))


def _without_random_ids(result: ExpectationSuiteValidationResult, name: str) -> ExpectationSuiteValidationResult:
    """The result without random ids and times, so that equal photos give equal artifacts."""
    version = result.meta["great_expectations_version"]
    result.meta = {"great_expectations_version": version, "batch_spec": {"data_asset_name": name}}
    for one in result.results:
        one.expectation_config.id = None
        one.expectation_config.kwargs.pop("batch_id", None)
        one.result.pop("unexpected_index_query", None)
    return result


def _where(file: Path, number: int, kind: Any) -> str:
    return f"{file}: expectation {f'{number}, ' if number else ''}{kind or 'without a type'},"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
