"""The parameters: one frozen model per step, one file each. Ranges, units, defaults and sentences stand there and nowhere else.

`resolve` lays the layers of a run over each other, `preflight` says what is wrong with the result.
"""

from photoflux.params.audit import AuditParams
from photoflux.params.augment import AugmentParams
from photoflux.params.evaluate import PROFILES, EvaluateParams
from photoflux.params.finetune import FinetuneParams
from photoflux.params.gate import GateParams
from photoflux.params.generate import FORMATS, STYLES, GenerateParams
from photoflux.params.import_photos import CONSENTS, ImportParams
from photoflux.params.model import Params, as_dict, check_text, help_of
from photoflux.params.register import MODEL_NAME, RegisterParams
from photoflux.params.validate import ValidateParams

STEP_PARAMS: dict[str, type[Params]] = {
    model.step: model
    for model in (
        ImportParams, ValidateParams, AugmentParams, FinetuneParams, EvaluateParams, AuditParams, GateParams, RegisterParams,
        GenerateParams,
    )
}  # fmt: skip
"""Every block of `params.yaml`, in the order of the steps."""

__all__ = [
    "CONSENTS", "FORMATS", "MODEL_NAME", "PROFILES", "STEP_PARAMS", "STYLES", "AuditParams", "AugmentParams", "EvaluateParams",
    "FinetuneParams", "GateParams", "GenerateParams", "ImportParams", "Params", "RegisterParams", "ValidateParams", "as_dict",
    "check_text", "help_of",
]  # fmt: skip
