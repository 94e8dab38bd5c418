"""Mix the photos of a batch, and their targets, by timm's mixup and CutMix."""

from collections.abc import Sequence

import torch
from timm.data import Mixup


def mix(
    mixup: Mixup | None, inputs: torch.Tensor, targets: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch, in place.

    mixup: timm's Mixup, or None; inputs (b, 3, h, w); targets: tensors (b, ...). Returns (targets of the photos that
    were mixed in, (b,) the share of each photo itself), or (None, None) where nothing is mixed. For CutMix the share is
    the area that was really left, so that targets are mixed as the pixels are.
    """
    if mixup is None or len(inputs) < 2:
        return None, None
    even = len(inputs) // 2 * 2  # timm pairs the first with the last; an odd one out stays as it is
    mixup.num_classes = even
    _, mixed = mixup(inputs[:even], torch.arange(even, device=inputs.device))
    share = torch.ones(len(inputs), device=inputs.device)
    share[:even] = mixed.diagonal()
    order = torch.arange(len(inputs), device=inputs.device)
    order[:even] = order[:even].flip(0)
    return [target[order] for target in targets], share
