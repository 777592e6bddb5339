-- What the outer loop asks of a study before it decides what comes next, and which files may go. Reading only, locks nothing.

-- Trials that were run as baselines, by number: whoever may be the yardstick among them.
CREATE OR REPLACE FUNCTION peft_pareto.baselines(study integer) RETURNS TABLE (
    trial_id integer, number integer, method text, baseline text, state text, reason text) LANGUAGE sql STABLE AS
$$
    SELECT c.trial_id, t.number, c.method, c.baseline, t.state::text, l.reason
        FROM peft_pareto.candidates c
        JOIN optuna.trials t ON t.trial_id = c.trial_id
        LEFT JOIN peft_pareto.leases l ON l.trial_id = c.trial_id
        WHERE c.study_id = study AND c.baseline IS NOT NULL ORDER BY t.number
$$;

-- The candidates of the front's points, each with the steps of its rung, by trial number.
CREATE OR REPLACE FUNCTION peft_pareto.front_candidates(study integer) RETURNS TABLE (candidate jsonb, repeats bigint)
    LANGUAGE sql STABLE AS
$$
    SELECT (array_agg(jsonb_set(c.json, '{steps}', to_jsonb(r.steps)) ORDER BY t.number))[1], count(*)
        FROM peft_pareto.front_of(study) AS f (hash)
        JOIN peft_pareto.rungs r ON r.study_id = study AND r.hash = f.hash AND NOT r.again
        JOIN peft_pareto.candidates c ON c.trial_id = r.trial_id
        JOIN optuna.trials t ON t.trial_id = r.trial_id
        GROUP BY f.hash ORDER BY min(t.number), min(r.steps)
$$;

-- The study's points up to a place in the order in which rungs were written, each as the candidate that stops there.
DROP FUNCTION IF EXISTS peft_pareto.evaluated(integer, bigint);
CREATE FUNCTION peft_pareto.evaluated(study integer, until bigint) RETURNS TABLE (
    number integer, candidate jsonb, "values" double precision[], parameters jsonb) LANGUAGE sql STABLE AS
$$
    SELECT t.number, jsonb_set(c.json, '{steps}', to_jsonb(r.steps)), r.values, c.parameters
        FROM peft_pareto.rungs r
        JOIN peft_pareto.candidates c ON c.trial_id = r.trial_id
        JOIN optuna.trials t ON t.trial_id = r.trial_id
        WHERE r.study_id = study AND r.recorded <= until AND NOT r.again ORDER BY r.recorded
$$;

-- Is the trial's rung at any steps on its study's front, or may it come to be?
CREATE OR REPLACE FUNCTION peft_pareto.is_contender(trial integer) RETURNS boolean LANGUAGE sql STABLE AS
$$
    SELECT EXISTS (SELECT FROM peft_pareto.rungs r JOIN peft_pareto.points p ON p.study_id = r.study_id AND p.hash = r.hash
                   WHERE r.trial_id = trial AND p.outdone IS NULL)
$$;

DROP FUNCTION IF EXISTS peft_pareto.droppable(integer, text, text, boolean);  -- of before

-- Notes of files that need not stay, of trials that ended after, or of which a point was outdone at, or after, what is given. A
-- rung's tensors (their name holds its hash) stay while its trial runs and has not evaluated it, and while it may be on the front;
-- a training's state stays while its trial runs or has such a rung. kept: as --keep, where all keeps both for whatever was
-- evaluated, and none no states.
CREATE OR REPLACE FUNCTION peft_pareto.droppable(
    study integer, weights_kind text, state_kind text, kept text, since bigint, ended_since timestamp)
    RETURNS TABLE (path text) LANGUAGE sql STABLE AS
$$
    WITH changed AS MATERIALIZED (
        SELECT t.trial_id FROM optuna.trials t WHERE t.study_id = study AND t.datetime_complete >= ended_since
        UNION
        SELECT r.trial_id FROM peft_pareto.points p JOIN peft_pareto.rungs r ON r.study_id = p.study_id AND r.hash = p.hash
            WHERE p.study_id = study AND p.outdone >= since
    ), noted AS (
        SELECT a.path, a.kind, t.state::text IN ('RUNNING', 'WAITING') AS live, r.hash,
               r.hash IS NOT NULL AND (kept = 'all' OR p.outdone IS NULL AND (kept = 'front' OR a.kind = weights_kind)) AS stays
            FROM changed
            JOIN peft_pareto.artifacts a ON a.trial_id = changed.trial_id
            JOIN optuna.trials t ON t.trial_id = a.trial_id
            LEFT JOIN peft_pareto.rungs r ON r.trial_id = a.trial_id AND (a.kind = state_kind OR a.path LIKE '%-' || r.hash || '.%')
            LEFT JOIN peft_pareto.points p ON p.study_id = study AND p.hash = r.hash
            WHERE a.kind IN (weights_kind, state_kind))
    SELECT n.path FROM noted n GROUP BY n.path
        HAVING NOT bool_or(n.stays) AND NOT bool_or(n.live AND (n.kind = state_kind OR n.hash IS NULL))
$$;
