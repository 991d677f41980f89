"""Measure a few images in memory, for a notebook or a first try. `analysis.run_all` stores its results.

```python
from analysis.run import quick
from analysis.tables import summary as tables
rows = quick.measure("idn", ["fp32", "minmax:w8a8", "my_scheme:w8a8"], quick.crops(photographs(4), 192))
print(tables.to_text(tables.summary(rows)))
```
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import torch

from analysis.records.crops import textured
from analysis.run.networks import checked, load, locate
from cadyq.data.bicubic import downscale
from cadyq.data.datasets import ImagePair
from cadyq.inference.threads import one_thread
from cadyq.metrics.measure import MODES, measure_image
from cadyq.utils.errors import UserError

DEVICE = torch.device("cpu")


@one_thread()
def measure(
    backbone: str, schemes: Sequence[str], pairs: Iterable[ImagePair], mode: str = MODES[0], scale: int = 4
) -> pd.DataFrame:
    """Measure without a run folder: rows as from `records.load`, one for each image and scheme.

    Args:
        backbone: registered name.
        schemes: schemes as in a command: of the zoo, calibrated, or registered in this session.
        pairs: LR and HR images of this scale.
        mode: "image" or "patch".
        scale: upscaling factor.

    Raises:
        UserError: a name is unknown, or the trained weights of a scheme are not in the zoo.
    """
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is unknown: choose from {', '.join(MODES)}")
    images, rows = list(pairs), []
    for spec in schemes:
        source = locate(backbone, checked(spec), scale)
        if source.reason:
            raise UserError(f"{backbone} {source.scheme}: {source.reason}")
        network = load(source)
        names = {"backbone": backbone, "scheme": source.scheme, "scale": scale, "weights_sha256": ""}
        for pair in images:
            rows.append(measure_image(network, pair, [mode], names | {"dataset": pair.dataset}, DEVICE)[mode])
    return pd.DataFrame(rows)


def crops(pairs: Iterable[ImagePair], side: int, scale: int = 4) -> list[ImagePair]:
    """The most textured square of each photograph, with a side of at most `side` HR pixels.

    LR is made from it by bicubic downscaling. The hash stays that of the whole photograph.
    """
    found = []
    for pair in pairs:
        top, left, size = textured(pair.hr.permute(1, 2, 0).numpy(), scale, limit=side, share=1)
        size = size // scale * scale
        hr = pair.hr[:, top : top + size, left : left + size].contiguous()
        found.append(replace(pair, hr=hr, lr=downscale(hr, scale)))
    return found
