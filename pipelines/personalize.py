"""The pipeline: photos in, an audited and registered adapter out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.audit import audit
from components.augment import augment
from components.configure import configure
from components.evaluate import evaluate
from components.fetch_champion import fetch_champion
from components.finetune import finetune
from components.gate import gate
from components.import_data import import_data
from components.notify import notify
from components.register import register
from components.validate import validate
from photoflux.params.form import form
from pipelines.resources import placed

TITLES = {
    "configure": "Configure the run",
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
AGAIN = {"num_retries": 2, "backoff_duration": "30s"}
"""For steps that ask others, who may be away for a moment."""


def asked_by_form(function: Callable[..., None]) -> Callable[..., None]:
    """The function as kfp wants to see it: the fields of the form in its signature and in its docstring."""
    fields = form()

    def pipeline(*values: Any) -> None:
        function(**dict(zip(fields, values, strict=True)))

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=field.kind
            )
            for name, field in fields.items()
        ]
    )
    described = [f"    {name}: {field.help}" for name, field in fields.items()]
    pipeline.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *described])
    pipeline.__name__ = function.__name__
    return pipeline


def named(task: dsl.PipelineTask, *, cached: bool = True) -> dsl.PipelineTask:
    """The task under its title; steps that look at the world or change it never come from a cache."""
    return task.set_display_name(TITLES[task.name]).set_caching_options(cached)


@dsl.pipeline(name="personalize", display_name="PhotoFlux: personalise")
@asked_by_form
def personalize(key: str, **values: Any) -> None:
    """Turn photos of one subject into a private adapter of the base model.

    What each step gets is settled first. Photos are imported and checked, a training set is prepared, an adapter is fine-tuned,
    evaluated and audited, held against the present champion, and only one that passes the gate is registered. However it ends, a
    last step tells so.
    """
    with dsl.ExitHandler(named(notify(), cached=False), name="Personalise"):
        plan = named(configure(key=key, **values), cached=False).outputs
        imported = named(import_data(params=plan["import_photos"], holding=plan["holding"], key=key)).set_retry(**AGAIN)
        checked = named(validate(photos=imported.outputs["photos"], params=plan["validate"], key=key))
        prepared = named(augment(validated=checked.outputs["validated"], params=plan["augment"], key=key))
        dataset = prepared.outputs["dataset"]
        trained = named(placed(finetune(dataset=dataset, params=plan["finetune"], key=key), "finetune"))
        adapter = trained.outputs["adapter"]
        present = named(fetch_champion(dataset=dataset, params=plan["register"], key=key), cached=False)
        champion = present.set_retry(**AGAIN).after(trained).outputs["champion"]
        measuring = evaluate(dataset=dataset, adapter=adapter, champion=champion, params=plan["evaluate"], key=key)
        measured = named(placed(measuring, "evaluate"))
        audited = named(placed(audit(adapter=adapter, params=plan["audit"], key=key), "audit"))
        findings = {"evaluation": measured.outputs["evaluation"], "audit": audited.outputs["audit"]}
        decided = named(gate(**findings, params=plan["gate"], key=key), cached=False)
        with dsl.If(decided.outputs["Output"] == True, name="Passed"):  # noqa: E712
            decision = decided.outputs["decision"]
            named(
                register(adapter=adapter, decision=decision, **findings, params=plan["register"], key=key), cached=False
            )
