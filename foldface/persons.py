"""Which photos show the same person, where no ids are given: learned from people whose ids are known.

Each kind of features (of the face, of clothes and background) gets a space in which the photos of a person lie close
together. A logistic regression turns the distances of two photos there into the probability that they show one person;
clusters grow by average linkage of these probabilities. How far they grow is chosen on people that the spaces were not
fitted to. Needs no torch.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from foldface.files import InputError

NEIGHBOURS = 30  # photos that each photo is compared with, in each space and in all of them together
MOST_AXES = 64  # of a space
LEAST_LINK = 0.01  # clusters that are joined by less are of no use at any threshold
INNER_PARTS = 3  # of the people, where they come from a single fold
LEAST_PEOPLE = 10  # with several photos, to learn from
USUAL_MOST = 0.99  # share of the people who have at most as many photos as a found person may have


class Space:
    """A linear map after which the photos of one person differ by as much in each direction.

    Within-class covariance normalization (Hatch et al. 2006), the covariance shrunk (Ledoit & Wolf 2004), then the
    principal axes of the people's means.
    """

    def __init__(self, features: np.ndarray, person: np.ndarray) -> None:
        """features: (n, d) float; person: (n,) int from 0, of whom some have several photos."""
        means = means_of(features, person)
        rest = features - means[person]
        rest = rest[np.bincount(person)[person] > 1]
        scale = rest.std(0) + 1e-9
        values, axes = np.linalg.eigh(ledoit_wolf(rest / scale, assume_centered=True)[0])
        whiten = axes / np.sqrt(np.maximum(values, 1e-9)) / scale[:, None]
        centred = (means - means.mean(0)) @ whiten
        principal = np.linalg.svd(centred, full_matrices=False)[2][:MOST_AXES].T
        self.mean, self.map = means.mean(0), whiten @ principal

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, axes) float32."""
        return ((features - self.mean) @ self.map).astype(np.float32)


def means_of(features: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean of each group's rows. features: (n, d); group: (n,) int from 0; returns (groups, d)."""
    found = np.zeros((group.max() + 1, features.shape[1]))
    np.add.at(found, group, features)
    return found / np.bincount(group)[:, None]


# ------------------------------------------------------------------------------------------------ pairs and clusters


def candidates(spaces: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs of photos that may show one person, (p, 2) int, the smaller index first: neighbours in any of the spaces,
    each (n, axes), or in all together."""
    count = len(spaces[0])
    if count < 2:
        return np.zeros((0, 2), np.int64)
    together, found = [np.concatenate(spaces, 1)] if len(spaces) > 1 else [], []
    for points in [*spaces, *together]:
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, count - 1)).fit(points).kneighbors(return_distance=False)
        pairs = np.stack([np.repeat(np.arange(count), near.shape[1]), near.ravel()], 1)
        found.append(np.sort(pairs, 1))
    return np.unique(np.concatenate(found), axis=0)


def distances(spaces: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """The distance of pairs (p, 2) in each space, (p, spaces). No squares beside it: the probability would rise again
    far away."""
    away = [np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) for points in spaces]
    return np.stack(away, 1).astype(float)


class Merges(NamedTuple):
    """What was joined, the strongest link first: (m, 2) int, a photo of each of the two clusters; and links (m,), the
    mean probability over the pairs between them, which never rises."""

    pairs: np.ndarray
    links: np.ndarray


def agglomerate(pairs: np.ndarray, probability: np.ndarray, count: int, largest: int) -> Merges:
    """Join `count` photos by average linkage, until links are below LEAST_LINK.

    pairs: (p, 2) int; probability: (p,) that they show one person, 0 for all other pairs; largest: photos of a cluster
    at most. Only pairs that are there are held: no (count, count) matrix is made.
    """
    sums = [{} for _ in range(count)]  # of each cluster: {other cluster: the sum of the probabilities between them}
    size, version, heap = [1] * count, [0] * count, []
    for (a, b), p in zip(pairs.tolist(), probability.tolist(), strict=True):
        sums[a][b] = sums[b][a] = p
        if p >= LEAST_LINK and largest > 1:
            heap.append((-p, a, b, 0, 0))
    heapq.heapify(heap)
    joined, links = [], []
    while heap:
        link, a, b, of_a, of_b = heapq.heappop(heap)
        if version[a] != of_a or version[b] != of_b:
            continue
        joined.append((a, b))
        links.append(-link)
        size[a] += size[b]
        version[a], version[b] = version[a] + 1, -1
        for c, p in sums[b].items():
            del sums[c][b]
            if c != a:
                sums[a][c] = sums[c][a] = sums[a].get(c, 0.0) + p
        for c, p in sums[a].items():
            mean = p / (size[a] * size[c])
            if mean >= LEAST_LINK and size[a] + size[c] <= largest:
                heapq.heappush(heap, (-mean, a, c, version[a], version[c]))
    return Merges(np.array(joined, np.int64).reshape(-1, 2), np.array(links))


def clusters(merges: Merges, threshold: float, count: int) -> np.ndarray:
    """The cluster of each of `count` photos, (n,) int, when links of at least `threshold` join."""
    parent = np.arange(count)
    for a, b in merges.pairs[merges.links >= threshold].tolist():
        parent[b] = a
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return np.unique(parent, return_inverse=True)[1]


def right_and_found(merges: Merges, person: np.ndarray) -> np.ndarray:
    """Pairs within clusters after each merge, (m, 2) int: those of one person, and all. person: (n,) int."""
    members, counts = {}, []
    for a, b in merges.pairs.tolist():
        one, other = (members.setdefault(k, Counter({int(person[k]): 1})) for k in (a, b))
        counts.append((sum(number * other[who] for who, number in one.items()), one.total() * other.total()))
        one.update(other)
    return np.cumsum(np.array(counts, np.int64).reshape(-1, 2), 0)


# --------------------------------------------------------------------------------------------------- what is learned


class Finder(NamedTuple):
    """What was learned: a space for each kind of features, the regression of distances, how many photos the pairs that
    it saw were among, the link from which clusters are joined (inf: never), and the most photos of a person."""

    spaces: list[Space]
    model: Pipeline
    among: float
    threshold: float
    largest: int

    def find(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """The person of each photo, (n,) int from 0. features: of each kind (n, d), a row of NaN = not known: then the
        photo is a person of its own."""
        known = np.flatnonzero(np.isfinite(np.concatenate(features, 1)).all(1))
        found = np.arange(len(features[0]))
        if len(known) > 1 and np.isfinite(self.threshold):
            points = [space(one[known]) for space, one in zip(self.spaces, features, strict=True)]
            pairs = candidates(points)
            p = probabilities(self.model, distances(points, pairs), self.among / len(known))
            merges = agglomerate(pairs, p, len(known), self.largest)
            found[known] = known[clusters(merges, self.threshold, len(known))]
        return np.unique(found, return_inverse=True)[1]


def probabilities(model: Pipeline, inputs: np.ndarray, rarer: float) -> np.ndarray:
    """Probabilities (p,) of one person, where such pairs are `rarer` times as frequent as the model saw them: among
    twice as many photos a photo has twice as many neighbours that are others, and no more of its own person."""
    odds = np.exp(np.clip(model.decision_function(inputs), -30, 30)) * rarer
    return odds / (1 + odds)


def learn(features: Sequence[np.ndarray], people: np.ndarray, part: np.ndarray, precision: float) -> Finder:
    """Learn from photos whose people are known. features: of each kind (n, d), all finite; people: (n,) str; part:
    (n,) of the photos that are compared with each other, each person in one; precision: of `choose_threshold`.

    The regression and the threshold see the distances of people that the spaces were not fitted to. Raises InputError
    where too few people have two photos.
    """
    person = np.unique(people, return_inverse=True)[1]
    sizes = np.bincount(person)
    several = int((sizes > 1).sum())
    if several < LEAST_PEOPLE:
        raise InputError(
            f"{several} people with two photos or more to learn from, {LEAST_PEOPLE} are needed: data.group names what "
            "tells the photos of a person"
        )
    largest = int(np.quantile(sizes, USUAL_MOST, method="inverted_cdf"))
    if len(np.unique(part)) < 2:
        part = np.random.default_rng(0).permutation(len(sizes))[person] % INNER_PARTS
    inputs, same, parts = [], [], []
    for k in np.unique(part):
        mine, spaces = part == k, fit_spaces(features, person, part != k)
        points = [space(one[mine]) for space, one in zip(spaces, features, strict=True)]
        pairs = candidates(points)
        parts.append((pairs, person[mine]))
        inputs.append(distances(points, pairs))
        same.append(person[mine][pairs[:, 0]] == person[mine][pairs[:, 1]])
    if len(np.unique(np.concatenate(same))) < 2:
        raise InputError("no photo has one of its person, or only such, among its neighbours: nothing to learn from")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e4, max_iter=1000))
    model.fit(np.concatenate(inputs), np.concatenate(same))
    among = len(person) / len(parts)
    links, counts = [], []
    for (pairs, who), given in zip(parts, inputs, strict=True):
        p = probabilities(model, given, among / len(who))
        merges = agglomerate(pairs, p, len(who), max(largest, 2))
        links.append(merges.links)
        counts.append(np.diff(right_and_found(merges, who), axis=0, prepend=0))
    threshold = choose_threshold(np.concatenate(links), np.concatenate(counts), precision)
    return Finder(fit_spaces(features, person, person >= 0), model, among, threshold, max(largest, 2))


def fit_spaces(features, person, rows):
    who = np.unique(person[rows], return_inverse=True)[1]
    return [Space(one[rows], who) for one in features]


def choose_threshold(links: np.ndarray, counts: np.ndarray, precision: float) -> float:
    """The link from which clusters are joined: as long as at least `precision` of the pairs that this adds are of one
    person. inf if that is never so.

    links: (m,) of all merges; counts: (m, 2) int, the pairs of one person and all pairs that each of them adds. What is
    maximized is right - precision * found: a wrong pair costs as much as precision / (1 - precision) right ones bring.
    One wrong pair is counted more than there are, so that some pairs that are right by chance are not enough. The
    threshold lies in the middle between the last merge and the next one.
    """
    order = np.argsort(-links, kind="stable")
    right, found = np.cumsum(counts[order], 0).T
    worth = right - precision * (found + 1)
    if not len(links) or worth.max() <= 0:
        return np.inf
    last = int(worth.argmax())
    below = links[order][last + 1] if last + 1 < len(links) else LEAST_LINK
    return float(links[order][last] + below) / 2


def out_of_fold(
    features: Sequence[np.ndarray], people: np.ndarray, part: np.ndarray, precision: float
) -> tuple[np.ndarray, list[float]]:
    """The person found for each photo, (n,) int from 0, among the photos of its part, by what was learned from the
    other parts; and their thresholds. Takes what `learn` takes."""
    found, thresholds, first = np.zeros(len(people), np.int64), [], 0
    for k in np.unique(part):
        mine = part == k
        finder = learn([one[~mine] for one in features], people[~mine], part[~mine], precision)
        found[mine] = first + finder.find([one[mine] for one in features])
        first = found[mine].max() + 1
        thresholds.append(finder.threshold)
    return found, thresholds


# -------------------------------------------------------------------------------------------------------- its errors


class PairCounts(NamedTuple):
    """Of each person (n,): pairs that were found and are right, all that were found (of a pair of two people each has
    half), and all that there are."""

    right: np.ndarray
    found: np.ndarray
    true: np.ndarray


def pair_counts(found: np.ndarray, people: np.ndarray, part: np.ndarray) -> PairCounts:
    """Count pairs of photos within a part. found: (n,) int; people: (n,) str; part: (n,)."""
    person = np.unique(people, return_inverse=True)[1]
    size = person.max() + 1
    whole = np.bincount(found)[found] - 1  # photos that each photo was found to be with
    both = np.unique(np.stack([person, found], 1), axis=0, return_counts=True)
    right = np.bincount(both[0][:, 0], both[1] * (both[1] - 1) / 2, size)
    there = np.unique(np.stack([person, np.unique(part, return_inverse=True)[1]], 1), axis=0, return_counts=True)
    true = np.bincount(there[0][:, 0], there[1] * (there[1] - 1) / 2, size)
    return PairCounts(right, np.bincount(person, whole, size) / 2, true)


def precision_and_recall(counts: PairCounts, samples: int = 1000) -> dict[str, tuple[float, float, float]]:
    """{"precision", "recall"}: (value, low, high), the ends of the 95 % interval, bootstrapped over people; NaN where
    no pair was found."""
    drawn = np.random.default_rng(0).multinomial(len(counts.true), [1 / len(counts.true)] * len(counts.true), samples)
    drawn = np.concatenate([np.ones((1, len(counts.true))), drawn])
    right, found, true = (drawn @ one for one in counts)
    result = {}
    for name, of in (("precision", found), ("recall", true)):
        values = np.divide(right, of, out=np.full(len(of), np.nan), where=of > 0)
        ends = np.nanquantile(values[1:], [0.025, 0.975]) if of[0] > 0 else (np.nan, np.nan)
        result[name] = (float(values[0]), *map(float, ends))
    return result
