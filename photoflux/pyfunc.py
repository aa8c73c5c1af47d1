"""A registered adapter as MLflow loads it: prompts in, images out. `tracking.Registry` names this module in what it registers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from photoflux.generate import AdapterPipeline


class Model:
    """What `mlflow.pyfunc.load_model` returns inside its wrapper; the base is loaded at the first image."""

    def __init__(self, adapter: Path, *, key: str, base: str) -> None:
        self._adapter, self._key, self._base = adapter, key, base
        self._pipeline: AdapterPipeline | None = None

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """One row per prompt: `image` is a PNG at the base's resolution as base64 text; `seed` defaults to 0."""
        import pandas as pd

        from photoflux.generate import open_adapter

        self._pipeline = self._pipeline or open_adapter(self._adapter, key=self._key, base=self._base)
        seeds = model_input.get("seed", pd.Series(0, index=model_input.index)).fillna(0).astype(int)
        images = [
            self._pipeline.png(prompt, seed=seed) for prompt, seed in zip(model_input["prompt"], seeds, strict=True)
        ]
        return pd.DataFrame({"image": [b64encode(png).decode() for png in images]}, index=model_input.index)


def _load_pyfunc(path: str, model_config: Mapping[str, str] | None = None) -> Model:
    """MLflow's entry point; `model_config={"base": "<spec .yaml>"}` loads the adapter on a base kept elsewhere."""
    config = model_config or {}
    return Model(Path(path), key=config.get("key", "plain://demo"), base=config.get("base", ""))
