"""What training minimises. Targets are class indices; smoothing turns them into distributions."""

import torch

import labels


class SoftCrossEntropy(torch.nn.Module):
    """Cross entropy against smoothed targets, weighted by class.

    `targets` (18, 18): row t is the distribution that class t stands for and sums to one; `weights` (18,). With the
    identity and ones it is torch's cross_entropy without reduction, so that a batch may be summed up in pieces. With
    three heads it is the sum of the heads' losses, since their log probabilities add up.
    """

    def __init__(self, targets, weights):
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, log_probabilities, label):
        """log_probabilities (n, 18) float32, label (n,) int64 -> (n,) float32."""
        return -(self.targets[label] * log_probabilities).sum(1) * self.weights[label]


def smoothed(name, smoothing):
    """The (18, 18) float32 targets of a loss.

    cross_entropy: `smoothing` is spread over all classes (Szegedy et al. 2016). neighbour: over the neighbouring age
    classes of the same mask and gender only, the second-place team's idea: 30-59 has two, <30 and >=60 have one.
    """
    eye = torch.eye(len(labels.CLASSES))
    if name == "cross_entropy":
        other = torch.full_like(eye, 1 / len(labels.CLASSES))
    else:
        near = torch.from_numpy(labels.age_neighbours()).float()
        other = near / near.sum(1, keepdim=True)
    return (1 - smoothing) * eye + smoothing * other


def make(settings, label):
    """The loss of `settings`; label: (n,) training labels, whose counts give the class weights if asked for."""
    weights = torch.ones(len(labels.CLASSES))
    if settings.class_weights:
        counts = torch.bincount(torch.as_tensor(label), minlength=len(labels.CLASSES)).float()
        weights = torch.where(counts > 0, counts.sum() / (counts.count_nonzero() * counts), 0.0)
    return SoftCrossEntropy(smoothed(settings.name, settings.smoothing), weights)
