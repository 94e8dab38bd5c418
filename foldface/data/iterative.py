"""Folds by several labels a photo."""

import numpy as np
import pandas as pd

from foldface.registry import BUILT_IN, register
from foldface.settings import Config


@register("splitter", "iterative")
def deal_iterative(people: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Iterative stratification (Sechidis et al. 2011) by several labels: strata are sets, whose bit k is label k."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    codes = people["stratum"].to_numpy(np.int64)
    labels = (codes[:, None] >> np.arange(max(int(codes.max()).bit_length(), 2))) & 1
    fold = np.empty(len(people), np.int64)
    dealer = MultilabelStratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    for k, (_, members) in enumerate(dealer.split(labels, labels)):
        fold[members] = k
    return fold


def splitter_of(config: Config) -> str:
    """The splitter that deals: data.splitter, but iterative where a photo has several labels and ours are chosen."""
    ours = config.data.splitter in BUILT_IN["splitter"]
    return "iterative" if config.predicted.multilabel and ours else config.data.splitter
