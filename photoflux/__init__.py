"""PhotoFlux: private FLUX.1 [schnell] adapters from a handful of photos, through one audited pipeline."""

__version__ = "0.1.0"
