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
from pipelines.resources import on_machine

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
RETRY = {"num_retries": 2, "backoff_duration": "30s"}
"""For steps that call other services, which may be unavailable for a moment."""


def with_form_signature(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the form's fields in signature and docstring, from which kfp reads parameters and descriptions."""
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


def titled(task: dsl.PipelineTask, *, cached: bool = True) -> dsl.PipelineTask:
    """The task under its title; steps that read or change something outside the pipeline are never `cached`."""
    return task.set_display_name(TITLES[task.name]).set_caching_options(cached)


@dsl.pipeline(name="personalize", display_name="PhotoFlux: personalise")
@with_form_signature
def personalize(key: str, **values: Any) -> None:
    """Turn photos of one subject into a private adapter of the base model.

    What each step gets is settled first. Photos are imported and checked, a training set is prepared, an adapter is fine-tuned,
    evaluated and audited, held against the present champion, and only one that passes the gate is registered. However it ends, a
    last step tells so.
    """
    with dsl.ExitHandler(titled(notify(), cached=False), name="Personalise"):
        blocks = titled(configure(key=key, **values), cached=False).outputs
        imported = titled(
            import_data(params=blocks["import_photos"], source_state=blocks["source_state"], key=key)
        ).set_retry(**RETRY)
        checked = titled(validate(photos=imported.outputs["photos"], params=blocks["validate"], key=key))
        prepared = titled(augment(validated=checked.outputs["validated"], params=blocks["augment"], key=key))
        dataset = prepared.outputs["dataset"]
        trained = titled(on_machine(finetune(dataset=dataset, params=blocks["finetune"], key=key), "finetune"))
        adapter = trained.outputs["adapter"]
        present = titled(fetch_champion(dataset=dataset, params=blocks["register"], key=key), cached=False)
        champion = present.set_retry(**RETRY).after(trained).outputs["champion"]
        measuring = evaluate(dataset=dataset, adapter=adapter, champion=champion, params=blocks["evaluate"], key=key)
        measured = titled(on_machine(measuring, "evaluate"))
        audited = titled(on_machine(audit(adapter=adapter, params=blocks["audit"], key=key), "audit"))
        findings = {"evaluation": measured.outputs["evaluation"], "audit": audited.outputs["audit"]}
        decided = titled(gate(**findings, params=blocks["gate"], key=key), cached=False)
        with dsl.If(decided.outputs["Output"] == True, name="Passed"):  # noqa: E712
            decision = decided.outputs["decision"]
            titled(
                register(adapter=adapter, decision=decision, **findings, params=blocks["register"], key=key),
                cached=False,
            )
