"WANN the slow way: loops, exact fractions, and distances by direct differences"
from fractions import Fraction

import numpy as np


def ranked(X, q, leave_out=None):
    "Rows by (squared distance, row)"
    d = ((np.asarray(X, float) - np.asarray(q, float))**2).sum(1)
    return [i for i in np.lexsort((np.arange(len(d)), d)) if i != leave_out]

def majority(labels):
    "The most frequent label; ties go to the smallest"
    return min(set(labels), key=lambda c: (-labels.count(c), c))

def sizes(X, y, k_min, k_max, self_rule='index'):
    "k* of every row"
    out = []
    for i in range(len(X)):
        order = ranked(X, X[i], i) if self_rule == 'index' else ranked(X, X[i])[1:]
        labels = [int(y[j]) for j in order]
        out.append(next((k for k in range(k_min, k_max, 2) if majority(labels[:k]) == y[i]), k_max))
    return np.array(out)

def predict(X, y, q, k_star, weighted=True):
    "The label of one query, and the exact scores"
    order = ranked(X, q)
    rows = order[:k_star[order[0]]]
    scores = {}
    for i in rows: scores[int(y[i])] = scores.get(int(y[i]), 0) + (Fraction(1, int(k_star[i])) if weighted else 1)
    best = [c for c, s in scores.items() if s == max(scores.values())]
    if not weighted: return min(best), scores
    return next(int(y[i]) for i in rows if int(y[i]) in best), scores
