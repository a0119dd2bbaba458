"""What the methods of the table are made of, so that drags of different ones never meet under one name.

A method that is trained again, or whose settings change, is another one: what was measured of it before says nothing
of it now. The generator, the step limit and the stop rule are the run's (`Bench.claim`) and no part of it here. What
changes in the code alone is not seen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from autodrag.checkpoint import PREDICTOR_FILE, REGULARIZER_FILE
from autodrag.eval import userlt
from autodrag.eval.freedrag import FreeDragConfig
from autodrag.infer.predict import PredictConfig
from autodrag.infer.refine import RefineConfig
from autodrag.points import Size


def identities(folder: Path, image_size: Size) -> dict[str, str]:
    """Digests by method name, for a checkpoint folder whose generator makes images of (H, W) px."""
    refiner = RefineConfig.preset("default", image_size).in_use()
    learned = (PredictConfig(), folder / PREDICTOR_FILE, folder / REGULARIZER_FILE)
    return {
        "none": digest(),
        "draggan": digest(RefineConfig.preset("draggan", image_size).in_use()),
        "refiner": digest(refiner),
        "freedrag": digest(FreeDragConfig.preset(image_size)),  # what is fitted depends on the generator alone
        "userlt": digest(folder / userlt.FILE),
        "predictor": digest(*learned),
        "hybrid": digest(*learned, refiner),
    }


def digest(*parts: Any) -> str:
    """16 hex digits of configs, and of the content of files; one that is not there counts as empty."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            made.update(hashlib.sha256(part.read_bytes() if part.is_file() else b"").digest())
        else:
            made.update(repr(part).encode())
    return made.hexdigest()[:16]
