"""The errors a person may see. Each message is one sentence: what is wrong, and what to do."""

from __future__ import annotations


class PhotoFluxError(Exception):
    """Base of every error that is the caller's to mend; printed without a traceback."""


class InputError(PhotoFluxError):
    """A file, folder, parameter or name that cannot be used as given."""


class ValidationFailed(PhotoFluxError):
    """The photo set as a whole cannot be trained on."""


class GateRejected(PhotoFluxError):
    """A model was asked to be registered that its gate did not let through."""
