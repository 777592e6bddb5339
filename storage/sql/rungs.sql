-- What a trial has reached: rungs with their scores, and what is known of a candidate's root from whatever trial.

-- Records an evaluated rung with its scores; again by the same trial, it replaces and keeps its place in the order. A new
-- one resets the trial's losses. It is no run of its point where another trial had evaluated the same (`again`), or where a repeat comes by a point
-- that is outdone: its tensors are deleted. Locks the study's row first, so that `recorded` ascends in the order of commits: who has
-- read up to a number never finds a smaller one later. Then the lease.
CREATE OR REPLACE FUNCTION peft_pareto.record_rung(
    trial integer, at_steps integer, own_hash text, own_words text, own_values double precision[], own_seconds double precision,
    own_memory bigint, own_violations jsonb, names text[], score_values double precision[], lows double precision[],
    highs double precision[], draws text[]) RETURNS void LANGUAGE plpgsql AS
$$
DECLARE
    study peft_pareto.studies;
    given peft_pareto.candidates;
    objection text;
    wanted integer;
    is_new boolean;
BEGIN
    SELECT s.* INTO study FROM peft_pareto.studies s JOIN optuna.trials t ON t.study_id = s.study_id
        WHERE t.trial_id = trial FOR NO KEY UPDATE OF s;
    PERFORM FROM peft_pareto.leases l WHERE l.trial_id = trial FOR NO KEY UPDATE;
    objection := peft_pareto.objection(trial);
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(trial, objection);
    END IF;
    SELECT * INTO given FROM peft_pareto.candidates c WHERE c.trial_id = trial;
    IF NOT FOUND OR at_steps <> ALL (given.rungs) THEN
        PERFORM peft_pareto.refuse_value(format('steps=%s is no rung of trial %s: its rungs are %s',
                                                at_steps, trial, coalesce(given.rungs::text, 'not described yet')));
    END IF;
    wanted := CASE WHEN study.objectives = '["joint_reward"]' THEN 2 ELSE jsonb_array_length(study.objectives) END;
    IF cardinality(own_values) <> wanted THEN
        PERFORM peft_pareto.refuse_value(format('a rung of trial %s has %s values, its study compares %s',
                                                trial, cardinality(own_values), wanted));
    END IF;
    is_new := NOT EXISTS (SELECT FROM peft_pareto.rungs r WHERE r.trial_id = trial AND r.steps = at_steps);
    IF is_new THEN
        INSERT INTO peft_pareto.rungs (trial_id, steps, study_id, hash, words, values, seconds, memory, violations, again)
            VALUES (trial, at_steps, study.study_id, own_hash, own_words, own_values, own_seconds, own_memory, own_violations,
                    EXISTS (SELECT FROM peft_pareto.rungs r JOIN peft_pareto.candidates c ON c.trial_id = r.trial_id
                            WHERE r.study_id = study.study_id AND r.hash = own_hash AND c.repeat = given.repeat)
                    OR given.repeat > 0 AND EXISTS (SELECT FROM peft_pareto.points p
                            WHERE p.study_id = study.study_id AND p.hash = own_hash AND p.outdone IS NOT NULL));
        UPDATE peft_pareto.leases l SET losses = 0 WHERE l.trial_id = trial;
    ELSE
        UPDATE peft_pareto.rungs r
            SET hash = own_hash, words = own_words, values = own_values, seconds = own_seconds, memory = own_memory,
                violations = own_violations WHERE r.trial_id = trial AND r.steps = at_steps;
        DELETE FROM peft_pareto.scores x WHERE x.trial_id = trial AND x.steps = at_steps;
    END IF;
    INSERT INTO peft_pareto.scores (trial_id, steps, name, value, low, high, replicates)
        SELECT trial, at_steps, given_score.name, given_score.value, given_score.low, given_score.high, given_score.draws::real[]
            FROM unnest(names, score_values, lows, highs, draws) AS given_score (name, value, low, high, draws);
END
$$;

-- The evaluated rungs of a root and repeat, of whatever trial measured each first, with their scores. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.known_rungs(study integer, wanted text, wanted_repeat integer) RETURNS TABLE (
    steps integer, trial_id integer, number integer, hash text, words text, "values" double precision[], seconds double precision,
    memory bigint, violations jsonb, scores jsonb) LANGUAGE sql STABLE AS
$$
    SELECT DISTINCT ON (r.steps) r.steps, r.trial_id, t.number, r.hash, r.words, r.values, r.seconds, r.memory, r.violations,
           (SELECT jsonb_object_agg(x.name, jsonb_build_array(x.value, x.low, x.high, x.replicates)) FROM peft_pareto.scores x
            WHERE x.trial_id = r.trial_id AND x.steps = r.steps)
        FROM peft_pareto.candidates c
        JOIN peft_pareto.rungs r ON r.trial_id = c.trial_id
        JOIN optuna.trials t ON t.trial_id = c.trial_id
        WHERE c.study_id = study AND c.root = wanted AND c.repeat = wanted_repeat
        ORDER BY r.steps, r.recorded
$$;

-- The front's hypervolume when a trial was finished. Again, it replaces. Locks nothing else.
CREATE OR REPLACE FUNCTION peft_pareto.record_hypervolume(trial integer, volume double precision) RETURNS void LANGUAGE sql AS
$$
    INSERT INTO peft_pareto.hypervolumes (trial_id, study_id, hypervolume)
        SELECT trial, t.study_id, volume FROM optuna.trials t WHERE t.trial_id = trial
        ON CONFLICT (trial_id) DO UPDATE SET hypervolume = excluded.hypervolume
$$;
