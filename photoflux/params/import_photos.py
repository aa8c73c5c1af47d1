"""Parameters of the import: where photos come from, and who or what they show."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from photoflux.params.model import Params, matching

Consent = Literal["sample", "own", "granted"]
CONSENTS: tuple[str, ...] = get_args(Consent)
"""`sample`: published sample data; `own`: the uploader's own subject; `granted`: the person shown agreed in writing."""


Source = Annotated[str, matching(r"(?s).*\S.*", "give a folder of photos, dvc:REPO@REV:PATH or blob:SET_ID")]
Noun = Annotated[str, matching(r"[A-Za-z][A-Za-z \-]{0,39}", "give one plain noun such as dog, mug or person")]
Trigger = Annotated[str, matching(r"[a-z0-9]{1,20}", "use 1-20 lower-case letters or digits, such as sks")]
SubjectId = Annotated[str, matching(r"([a-z0-9][a-z0-9-]{0,62})?", "use 1-63 of a-z, 0-9 and -, such as rex-2")]


class ImportParams(Params):
    """Where the photos come from and who or what they show."""

    step: ClassVar[str] = "import_photos"

    source: Source = Field(
        default="data/samples/dog",
        description="Folder of photos, dvc:REPO@REV:PATH for a DVC-tracked set, or blob:SET_ID for an uploaded set",
    )
    class_noun: Noun = Field(
        default="dog", description="What the subject is, in one plain word the base knows (dog, mug, person)"
    )
    trigger: Trigger = Field(default="sks", description="Rare word that will stand for this one subject in prompts")
    subject_id: SubjectId = Field(
        default="",
        description="Name of the subject in reports and in the registry: a-z, 0-9 and -; empty: made of the source",
    )
    consent: Consent = Field(default="sample", description="On what ground the photos may be used")
    max_files: int = Field(default=40, ge=1, le=500, description="Most photos one set may hold")
    max_file_mb: int = Field(default=50, ge=1, le=500, description="Largest single photo accepted, in megabytes")
