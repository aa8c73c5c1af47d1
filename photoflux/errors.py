"""The errors a person may see. Each message is one sentence: what is wrong, and what to do."""

from __future__ import annotations


class PhotoFluxError(Exception):
    """Base of all errors that the caller can correct; printed without a traceback."""


class InputError(PhotoFluxError):
    """A file, folder, parameter or name that cannot be used as given."""


class ValidationFailed(PhotoFluxError):
    """The photo set as a whole cannot be trained on."""


class GateRejected(PhotoFluxError):
    """A model cannot be registered because its gate did not pass it."""
