"""Other heads for a pretrained network, before and after calibration: `python -m benchmarks.heads`.

KL divergence to the network's own answers, on the photographs that the numbers were fitted on and on others.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from everypool import swap
from everypool.study.backbone import load
from everypool.study.data import photos
from everypool.surgery.calibrate import drifted, outputs

SIZE = 224
FIXED = "max", "gem:p=3", "soft:beta=1", "logsumexp:r=1"
OPEN = "gem", "soft", "logsumexp"


def main() -> None:
    images = torch.cat([F.interpolate(photos.load(name)[None], (SIZE, SIZE), mode="area") for name in photos.NAMES])
    fitted, others = images[::2], images[1::2]
    print("| head | before | after | times less | others, before | after | times less | labels kept |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |")
    for pool in FIXED + OPEN:
        model = copy.deepcopy(load())
        old = outputs(model, [others])
        with swap(model, {"head": pool}, others):
            raw = drifted(old, outputs(model, [others]))
        report = swap(model, {"head": pool}, calibrate=fitted)
        new = drifted(old, outputs(model, [others]))
        if report.drift is not None:
            near, far = report.drift.raw / report.drift.value, raw.value / new.value
            cells = f"{report.drift.raw:.3g} | {report.drift.value:.3g} | {near:.1f} | {raw.value:.3g} | {new.value:.3g}"
            print(f"| {pool} | {cells} | {far:.1f} | {raw.same:.0%} to {new.same:.0%} |", flush=True)
    for pool in ("max", *OPEN):
        drift = swap(copy.deepcopy(load()), {"head": pool}, images, preserve=True).drift
        print(f"\n{pool}, preserved: {drift.value if drift is not None else 0:.2g}")


if __name__ == "__main__":
    main()
