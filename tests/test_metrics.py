"Metrics: hand examples, brute force, scikit-learn, and the cases in which a figure is undefined"
import json, warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings, strategies as st

from noisynb.core import NoisynbError
from noisynb.metrics import calibration_error, classification, correction, label_errors

few = settings(max_examples=50, deadline=None)


def plain(d):
    "Only None, int and float, and JSON takes them"
    json.dumps(d, allow_nan=False)
    return all(v is None or type(v) in (int, float) for v in d.values())


@few
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_classification_by_counting(pairs):
    t, p = map(np.array, zip(*pairs))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        got = classification(t, p)
    recall = [(p[t == c] == c).mean() for c in set(t)]
    f1 = [2*((t == c) & (p == c)).sum()/((t == c).sum() + (p == c).sum()) for c in set(t) | set(p)]
    assert plain(got) and got == pytest.approx(dict(accuracy=(t == p).mean(), balanced_accuracy=np.mean(recall), macro_f1=np.mean(f1)))


def test_classification_hand_example():
    got = classification([0, 0, 0, 1], [0, 0, 1, 1], [[.9, .1], [.7, .3], [.4, .6], [.2, .8]])
    assert got == pytest.approx(dict(accuracy=.75, balanced_accuracy=5/6, macro_f1=(4/5 + 2/3)/2, calibration_error=(.1+.3+.6+.2)/4))


def test_classification_of_string_labels_one_class_and_nothing():
    assert classification(['cat', 'cat'], ['cat', 'dog'])['accuracy'] == .5
    assert classification([3, 3], [3, 3], [[1.], [1.]]) == dict(accuracy=1., balanced_accuracy=1., macro_f1=1., calibration_error=0.)
    empty = classification([], [], np.zeros((0, 2)))
    assert set(empty) == {'accuracy', 'balanced_accuracy', 'macro_f1', 'calibration_error'} and set(empty.values()) == {None}


@few
@given(st.lists(st.tuples(st.booleans(), st.floats(.001, 1)), min_size=1, max_size=60), st.integers(1, 20))
def test_calibration_error_by_bins(rows, bins):
    right, sure = map(np.array, zip(*rows))
    total = 0
    for b in range(bins):
        inside = (np.ceil(sure*bins) == b+1)
        if inside.any(): total += inside.sum()/len(sure)*abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(right, sure, bins) == pytest.approx(total)


def test_calibration_error_ends():
    assert calibration_error([0, 1], [0., 1.]) == 0 and calibration_error([1, 0], [0., 1.]) == 1 and calibration_error([], []) is None
    assert calibration_error([1], [1+1e-7]) < 1e-6


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_label_errors_against_scikit_learn(rows):
    quality, flagged, flipped = map(np.array, zip(*rows))
    got = label_errors(quality/5, flagged, flipped)
    assert plain(got) and got['flagged'] == flagged.sum()
    bad, good = quality[flipped], quality[~flipped]
    if len(bad) and len(good):
        pairs = (bad[:, None] < good).mean() + .5*(bad[:, None] == good).mean()   # the AUROC as a probability
        assert got['auroc'] == pytest.approx(pairs)
    else: assert got['auroc'] is None
    if len(bad): assert got['average_precision'] == pytest.approx(sk.average_precision_score(flipped, -quality))
    else: assert got['average_precision'] is None
    want = sk.precision_recall_fscore_support(flipped, flagged, average='binary', zero_division=np.nan)[:3]
    for k, v in zip(('precision', 'recall', 'f1'), want):
        if got[k] is None: assert np.isnan(v)
        else: assert got[k] == pytest.approx(v)


def test_label_errors_hand_example():
    got = label_errors([.1, .2, .8, .9], [True, True, True, False], [True, False, False, True])
    assert got == pytest.approx(dict(auroc=.5, average_precision=.5*1 + .5*.5, precision=1/3, recall=.5, f1=.4, flagged=3))


def test_label_errors_where_something_is_missing():
    no, yes = [False]*3, [True]*3
    assert label_errors([1, 2, 3], no, no) == dict(auroc=None, average_precision=None, precision=None, recall=None, f1=None, flagged=0)
    assert label_errors([1, 2, 3], yes, no) == dict(auroc=None, average_precision=None, precision=0., recall=None, f1=0., flagged=3)
    assert label_errors([1, 2, 3], no, yes) == dict(auroc=None, average_precision=1., precision=None, recall=0., f1=0., flagged=0)
    assert label_errors(None, yes, yes) == dict(auroc=None, average_precision=None, precision=1., recall=1., f1=1., flagged=3)
    assert label_errors([0, 1, 1], None, [True, False, False]) == dict(auroc=1., average_precision=1., precision=None, recall=None, f1=None, flagged=None)
    assert label_errors([], [], [])['auroc'] is None


def test_a_better_ranking_scores_better_whatever_the_scale():
    flipped = np.arange(20) % 4 == 0
    quality = np.where(flipped, .3, .7) + np.linspace(-.3, .3, 20)
    a, b, c = (label_errors(q, None, flipped) for q in (quality, 100*quality - 7, np.where(flipped, 0, 1)))
    assert a == b and c['auroc'] == 1 > a['auroc'] and c['average_precision'] == 1 > a['average_precision']
    for kind in np.uint8, bool: assert label_errors((~flipped).astype(kind), None, flipped) == c


@few
@given(st.lists(st.tuples(*[st.integers(0, 3)]*3), min_size=1, max_size=40))
def test_correction_counts(rows):
    corrected, labels, was = map(np.array, zip(*rows))
    got = correction(corrected, labels, was)
    assert plain(got) and got['left'] == got['wrong'] - got['repaired'] + got['broken']
    assert got == dict(correction_accuracy=pytest.approx((corrected == labels).mean()), wrong=sum(b != c for a, b, c in rows),
        repaired=sum(c != b == a for a, b, c in rows), broken=sum(c == b != a for a, b, c in rows), left=sum(a != b for a, b, c in rows))
    assert correction(was, labels, was)['repaired'] == 0 == correction(labels, labels, was)['left']


@pytest.mark.parametrize('call,words', [
    (lambda: classification([0, 1], [0]), 'y_pred (has shape (1,))'), (lambda: classification([[0]], [[0]]), 'one entry for each example'),
    (lambda: classification([0], [0], [.5, .5]), 'proba has the shape (2,)'), (lambda: classification([0], [0], [[.5, 1.5]]), 'probabilities'),
    (lambda: classification([0], [0], [[np.nan, .5]]), 'probabilities'), (lambda: label_errors([.1, np.nan], None, [True, False]), 'quality[1] is nan'),
    (lambda: label_errors([.1], [True, False], [True, False]), 'quality (has shape (1,))'), (lambda: correction([0], [0], [0, 1]), 'given (has shape (2,))')])
def test_mistakes_are_explained(call, words):
    with pytest.raises(NoisynbError) as e: call()
    assert words in str(e.value)
