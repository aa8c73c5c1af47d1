"""The pipeline: photos in, an audited and registered adapter out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from components.audit import audit
from components.augment import augment
from components.evaluate import evaluate
from components.fetch_champion import fetch_champion
from components.finetune import finetune
from components.gate import gate
from components.import_data import import_data
from components.notify import notify
from components.register import register
from components.validate import validate
from pipelines.parameters import STEPS, flat_parameters
from pipelines.resources import placed

NAME = "personalize"
DEFAULT_KEY = "plain://demo"
TITLES = {
    "import-data": "Import the photos",
    "validate": "Check the photos",
    "augment": "Prepare the training set",
    "finetune": "Fine-tune the adapter",
    "fetch-champion": "Fetch the champion",
    "evaluate": "Evaluate likeness and prompts",
    "audit": "Audit for bias",
    "gate": "Decide on promotion",
    "register": "Register the model",
    "notify": "Tell how it ended",
}


def personalize(key: str, **given: Mapping[str, Any]) -> None:
    """Turn photos of one subject into a private adapter of the base model.

    Photos are imported and checked, a training set is prepared, an adapter is fine-tuned, evaluated and
    audited, held against the present champion, and only one that passes the gate is registered. However it ends, a last step tells so.
    """
    with dsl.ExitHandler(_named(notify(), cached=False), name="Personalise"):
        imported = _named(import_data(key=key, **given["import_photos"]), cached=False).set_retry(
            2, backoff_duration="30s"
        )
        checked = _named(validate(photos=imported.outputs["photos"], key=key, **given["validate"]))
        prepared = _named(augment(validated=checked.outputs["validated"], key=key, **given["augment"]))
        dataset = prepared.outputs["dataset"]
        trained = _named(placed(finetune(dataset=dataset, key=key, **given["finetune"]), "finetune"))
        adapter = trained.outputs["adapter"]
        name = given["register"]["name"]
        present = _named(fetch_champion(dataset=dataset, key=key, name=name), cached=False).set_retry(
            2, backoff_duration="30s"
        )
        judged = {
            "dataset": dataset,
            "adapter": adapter,
            "champion": present.after(trained).outputs["champion"],
            "key": key,
        }
        measured = _named(placed(evaluate(**judged, **given["evaluate"]), "evaluate"))
        audited = _named(placed(audit(adapter=adapter, key=key, **given["audit"]), "audit"))
        findings = {"evaluation": measured.outputs["evaluation"], "audit": audited.outputs["audit"]}
        decided = _named(gate(**findings, key=key, **given["gate"]), cached=False)
        with dsl.If(decided.outputs["Output"] == True, name="Passed"):  # noqa: E712
            _named(
                register(
                    adapter=adapter,
                    decision=decided.outputs["decision"],
                    **findings,
                    key=key,
                    **given["register"],
                ),
                cached=False,
            )


def build(defaults: Mapping[str, Any]) -> Any:
    """The KFP pipeline with one flat, typed, described parameter per field of every step.

    `defaults` maps `<step>_<field>` to its default.
    """
    return dsl.pipeline(name=NAME, display_name="PhotoFlux: personalise")(_flattened(personalize, defaults))


def _flattened(function: Callable[..., None], defaults: Mapping[str, Any]) -> Callable[..., None]:
    """The function as kfp wants to see it: every parameter spelled out in its signature and its docstring."""
    flat = flat_parameters()

    def pipeline(*values: Any) -> None:
        channels = dict(zip(("key", *flat), values, strict=True))
        given: dict[str, dict[str, Any]] = {step: {} for step in STEPS}
        for name, one in flat.items():
            given[one.step][one.field] = channels[name]
        function(channels["key"], **given)

    form = inspect.Parameter.POSITIONAL_OR_KEYWORD
    spelled = [inspect.Parameter("key", form, default=DEFAULT_KEY, annotation=str)]
    spelled += [
        inspect.Parameter(name, form, default=one.kind(defaults[name]), annotation=one.kind)
        for name, one in flat.items()
    ]
    lines = ["    key: Key URI under which every artifact of the run is sealed"]
    lines += [f"    {name}: {one.help}" for name, one in flat.items()]
    pipeline.__signature__ = inspect.Signature(spelled)  # type: ignore[attr-defined]
    pipeline.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
    pipeline.__name__ = function.__name__
    return pipeline


def _named(task: dsl.PipelineTask, *, cached: bool = True) -> dsl.PipelineTask:
    """The task under its title; steps that look at the world or change it never come from a cache."""
    return task.set_display_name(TITLES[task.name]).set_caching_options(cached)
