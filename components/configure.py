"""Component: configure the run. Names, types and help of the form stand here once more, for the console; a test holds them equal."""

from typing import NamedTuple

from kfp.dsl import Markdown, Output

from components._image import component


@component
def configure(
    summary: Output[Markdown],
    import_photos_source: str,
    import_photos_class_noun: str,
    base: str,
    register_name: str,
    import_photos_subject_id: str,
    import_photos_trigger: str,
    import_photos_consent: str,
    finetune_steps: int,
    finetune_rank: int,
    finetune_alpha: float,
    finetune_lr: float,
    finetune_batch_size: int,
    finetune_preservation: float,
    finetune_ema: float,
    finetune_select: str,
    finetune_seed: int,
    augment_variants: int,
    augment_crop: str,
    augment_flip: str,
    augment_colour_jitter: str,
    evaluate_profile: str,
    audit_profile: str,
    audit_judge_card: str,
    overrides: str,
    key: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Configured",
    [
        ("import_photos", str),
        ("validate", str),
        ("augment", str),
        ("finetune", str),
        ("evaluate", str),
        ("audit", str),
        ("gate", str),
        ("register", str),
        ("source_state", str),
    ],
):
    """Say which parameters every step gets, and stop a run here that could not end well.

    Args:
        import_photos_source: Folder of photos, dvc:REPO@REV:PATH for a DVC-tracked set, or blob:SET_ID for an uploaded set
        import_photos_class_noun: What the subject is, in one plain word the base knows (dog, mug, person)
        base: Base model: a name in models/ or the path of a spec .yaml
        register_name: Name of the registered model: a-z, 0-9, - and _; empty: the subject's id
        import_photos_subject_id: Name of the subject in reports and in the registry: a-z, 0-9 and -; empty: made of the source
        import_photos_trigger: Rare word that will stand for this one subject in prompts
        import_photos_consent: On what ground the photos may be used (sample, own, granted)
        finetune_steps: Optimiser steps (1 to 10000); 0: as the base says
        finetune_rank: Rank of the adapter (1 to 256); 0: as the base says
        finetune_alpha: Strength of the adapter; its updates are scaled by alpha/rank (0.1 to 1024); 0: as the base says
        finetune_lr: Peak learning rate of AdamW (1e-07 to 0.1); 0: as the base says
        finetune_batch_size: Photos per step (1 to 64); 0: as the base says
        finetune_preservation: Weight of staying like the base without the trigger; 0: plain training (0 to 100); -1: as the base says
        finetune_ema: Decay of the averaged weights that are kept; 0: the last weights (0 to 0.9999); -1: as the base says
        finetune_select: Which candidate is kept; best: by identity against prompt and leakage (best, last); empty: as the base says
        finetune_seed: Decides initial weights, batches and noise (0 to 1000000000); -1: as the base says
        augment_variants: Varied copies per photo; originals stay at least half of all samples (0 to 2); -1: as the base says
        augment_crop: What the square crop is laid around (subject, centre); empty: as the base says
        augment_flip: Mirror variants; auto: small sets of symmetric things, no people or lettering (auto, on, off); empty: as the base says
        augment_colour_jitter: Vary brightness and gamma; auto: not for people or lettering (auto, on, off); empty: as the base says
        evaluate_profile: Prompts x seeds per set: smoke 5x2, standard 25x4, release 50x4; empty: as the base says
        audit_profile: Pictures of people per side: smoke about 70, standard about 400, release about 1000; empty: as the base says
        audit_judge_card: Judge card made by `photoflux label`; empty: the error rates that come with the base's judges
        overrides: Any other parameter, as JSON: {"gate_leakage_max": 0.2}; they win
        key: Key URI under which every artifact of the run is sealed
    """
    values = {name: value for name, value in locals().items() if name != "summary"}
    from pathlib import Path

    from components.sources import source_state
    from photoflux.params.form import read_form
    from photoflux.runs import report_failure
    from photoflux.steps import configure

    with report_failure("configure", output=summary.path):
        blocks = configure.run(*read_form(values), summary=Path(summary.path))
        return (
            *(params.block() for params in blocks.values()),
            source_state(blocks["import_photos"].model_dump()["source"]),
        )
