"""The same study as plain Optuna keeps it, in the same PostgreSQL and in memory, for `benchmarks.outer_loop` to compare with."""

from __future__ import annotations

import optuna
import psycopg2

from benchmarks.outer_loop_space import propose
from benchmarks.outer_loop_study import measured
from hpo.study import Search
from storage.engine import normalise, plain

SAMPLERS = {"random": lambda: optuna.samplers.RandomSampler(seed=0), "tpe": lambda: optuna.samplers.TPESampler(multivariate=True, seed=0),
            "auto": lambda: optuna.samplers.RandomSampler(seed=0)}
DIRECTIONS = ("minimize", "minimize")
COPIED = """
CREATE TEMP TABLE copied ON COMMIT DROP AS
    SELECT t.trial_id AS old, nextval(pg_get_serial_sequence('trials', 'trial_id'))::integer AS new, r.values FROM trials t
        CROSS JOIN LATERAL (SELECT values FROM peft_pareto.rungs r WHERE r.trial_id = t.trial_id ORDER BY r.steps DESC LIMIT 1) AS r
        WHERE t.study_id = %(ours)s AND t.state IN ('COMPLETE', 'PRUNED') AND EXISTS (SELECT FROM trial_params p WHERE p.trial_id = t.trial_id);
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete)
    SELECT new, row_number() OVER (ORDER BY new) - 1, %(plain)s, 'COMPLETE', datetime_start, datetime_complete
        FROM copied JOIN trials ON trial_id = old;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT new, param_name, param_value, distribution_json FROM copied JOIN trial_params ON trial_id = old ORDER BY param_id;
INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT new, o.place - 1, o.value, 'FINITE' FROM copied CROSS JOIN LATERAL unnest(values) WITH ORDINALITY AS o (value, place);
"""


def study(url: str, name: str, search: Search) -> optuna.Study:
    """Plain Optuna's study with the trials of one of ours, all of them complete."""
    made = optuna.create_study(storage=optuna.storages.RDBStorage(normalise(url)), study_name=name, directions=DIRECTIONS)
    connection = psycopg2.connect(plain(url))
    with connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(COPIED, {"ours": search.id, "plain": made._study_id})
    connection.close()
    return made


def in_memory(stored: optuna.Study) -> optuna.Study:
    made = optuna.create_study(directions=DIRECTIONS)
    for trial in stored.get_trials(deepcopy=False):
        made._storage.create_new_trial(made._study_id, template_trial=trial)
    return made


def one_trial(given: optuna.Study, search: Search, generator) -> None:
    trial = given.ask()
    propose(trial, search.bounds)
    given.tell(trial, measured(generator))
