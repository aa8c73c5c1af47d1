"""An untrained base: right shapes, no skill, in seconds."""

from __future__ import annotations

from pathlib import Path

from photoflux.pocket import models, train_judges, world
from photoflux.pocket.pretrain import export_base, write_spec


def init_base(folder: Path, *, seed: int = 0, config: models.PocketConfig | None = None) -> Path:
    """An UNTRAINED base with judges at `folder` and its spec at `folder.yaml`: right shapes, no skill, in seconds."""
    config = config or models.PocketConfig()
    pipe = models.build_base(config, seed=seed, vocabulary=list(world.vocabulary()))
    export_base(pipe, folder)
    train_judges.export_judges(
        folder / "judges", work=None, config=config, tokenizer=pipe.tokenizer, vae=pipe.vae, seed=seed
    )
    write_spec(folder, config=config)
    return folder
