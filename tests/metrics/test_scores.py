"""The table of scores, and the scores of a model."""

import json
import pickle

import pytest

from metrics.errors import UnknownName
from metrics.estimate import Estimate
from metrics.scores import SCORES, Scores, nearest_names, score_named


def test_the_table_holds_the_scores_that_the_store_has_columns_for():
    assert list(SCORES) == ["fd", "kid", "loss_gap", "copy_excess", "copy_rate", "amd_train", "amd_twin"]
    assert {name for name, score in SCORES.items() if score.kind == "quality"} == {"fd", "kid"}
    assert {name for name, score in SCORES.items() if score.direction == "maximize"} == {"amd_train", "amd_twin"}
    assert all(name == score.name and score.unit and score.meaning for name, score in SCORES.items())


def test_an_unknown_name_gets_the_three_nearest():
    assert nearest_names("copy_exces")[0] == "copy_excess"
    assert len(nearest_names("zzz")) == 3
    assert nearest_names("a", ["b"]) == ["b"]
    with pytest.raises(UnknownName, match="score 'fid' does not exist, nearest are .*fd.*use one of them"):
        score_named("fid")


def test_scores_keep_the_order_of_the_table_and_round_trip():
    scores = Scores({"loss_gap": Estimate(0, -1, 1), "fd": Estimate(2, 1, 3)})
    assert list(scores) == ["fd", "loss_gap"]
    assert scores["fd"].value == 2 and "kid" not in scores and len(scores) == 2
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores
    assert pickle.loads(pickle.dumps(scores)) == scores


def test_scores_refuse_a_name_that_no_score_has():
    with pytest.raises(UnknownName, match="'copy_rat'"):
        Scores({"copy_rat": Estimate(0, 0, 0)})


def test_the_worse_of_two_is_taken_score_by_score_by_direction():
    written = Scores({"fd": Estimate(2, 1, 3), "copy_excess": Estimate(0.1, 0, 0.2), "amd_train": Estimate(0.5, 0.4, 0.6), "kid": Estimate(1, 1, 1)})
    trained = Scores({"fd": Estimate(3, 1, 4), "copy_excess": Estimate(0.0, 0, 0.1), "amd_train": Estimate(0.4, 0.3, 0.6)})
    worse = written.worse(trained)
    assert {name: estimate.value for name, estimate in worse.items()} == {"fd": 3, "copy_excess": 0.1, "amd_train": 0.4}
    assert worse == trained.worse(written) and worse["fd"] is trained["fd"]
