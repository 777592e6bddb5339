-- What results.py asks for in more than a line, as functions. `optuna.` stands for the schema of Optuna's tables.

-- Number of another trial of the study with this candidate that makes running it again useless: finished; failed by the
-- candidate's own fault; or held by a live worker that recorded it earlier (or at all, if this trial has recorded
-- nothing yet). NULL if there is none. Locks nothing; recording takes turns, so that of two only one is the earlier.
CREATE OR REPLACE FUNCTION peft_pareto.duplicate_of(study integer, wanted text, trial integer) RETURNS integer
    LANGUAGE sql STABLE AS
$$
    SELECT t.number
        FROM peft_pareto.candidates c
        JOIN optuna.trials t ON t.trial_id = c.trial_id
        JOIN peft_pareto.leases l ON l.trial_id = c.trial_id
        LEFT JOIN peft_pareto.candidates own ON own.trial_id = trial
        WHERE c.study_id = study AND c.hash = wanted AND c.trial_id <> trial
          AND (t.state IN ('COMPLETE', 'PRUNED')
               OR t.state = 'FAIL' AND l.outcome = 'failed' AND l.own_cause
               OR t.state = 'RUNNING' AND l.expires_at > clock_timestamp() AND l.outcome IS DISTINCT FROM 'duplicate'
                  AND c.recorded < coalesce(own.recorded, c.recorded + 1))
        ORDER BY t.number LIMIT 1
$$;

-- Records what a trial is about to run; again by the same trial, it replaces. Locks the study's row, so that candidates
-- are recorded one after the other.
CREATE OR REPLACE FUNCTION peft_pareto.record_candidate(trial integer, candidate jsonb) RETURNS void
    LANGUAGE plpgsql AS
$$
DECLARE
    study integer;
    given peft_pareto.candidates := jsonb_populate_record(NULL::peft_pareto.candidates, candidate);
BEGIN
    SELECT s.study_id INTO study FROM peft_pareto.studies s JOIN optuna.trials t ON t.study_id = s.study_id
        WHERE t.trial_id = trial FOR NO KEY UPDATE OF s;
    INSERT INTO peft_pareto.candidates
            (trial_id, study_id, hash, words, method, steps, trainable, trainable_share, json, baseline, yardstick)
        VALUES (trial, study, given.hash, given.words, given.method, given.steps, given.trainable,
                given.trainable_share, given.json, given.baseline, given.yardstick)
        ON CONFLICT (trial_id) DO UPDATE
            SET hash = excluded.hash, words = excluded.words, method = excluded.method, steps = excluded.steps,
                trainable = excluded.trainable, trainable_share = excluded.trainable_share, json = excluded.json,
                baseline = excluded.baseline, yardstick = excluded.yardstick;
END
$$;

-- The study's references, written once: the first caller's stay, and everybody gets those. Locks the study's row.
CREATE OR REPLACE FUNCTION peft_pareto.record_references(study integer, given jsonb) RETURNS SETOF peft_pareto.studies
    LANGUAGE plpgsql AS
$$
BEGIN
    UPDATE peft_pareto.studies
        SET q_base = (given ->> 'q_base')::double precision, q_real = (given ->> 'q_real')::double precision,
            m_base = (given ->> 'm_base')::double precision, reference_scores = given -> 'scores', base = given -> 'base'
        WHERE study_id = study AND reference_scores IS NULL;
    RETURN QUERY SELECT * FROM peft_pareto.studies WHERE study_id = study;
END
$$;

-- Running trials of a study for the display: who is at what, since when. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.running(study integer) RETURNS TABLE (
    trial_id integer, number integer, worker text, words text, stage text, seconds double precision)
    LANGUAGE sql STABLE AS
$$
    SELECT t.trial_id, t.number, l.worker, c.words, l.stage,
           extract(epoch FROM clock_timestamp() - l.leased_at)::double precision
        FROM optuna.trials t
        JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
        LEFT JOIN peft_pareto.candidates c ON c.trial_id = t.trial_id
        WHERE t.study_id = study AND t.state = 'RUNNING' ORDER BY t.number
$$;
