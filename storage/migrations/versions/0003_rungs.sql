-- Rungs, losses of leases, repeats, the study's queue, hypervolume against time. `optuna.` stands for the schema of
-- Optuna's tables. Locking: ACCESS EXCLUSIVE on our own tables, SHARE ROW EXCLUSIVE on Optuna's trials.

-- What is made again, with other columns, by the files in sql/ right after this. The triggers would refuse to let
-- finished trials be rewritten here.
DROP VIEW IF EXISTS optuna.pareto_front, optuna.trial_scores, optuna.loss_curves, peft_pareto.points, peft_pareto.yardsticks;
DROP FUNCTION IF EXISTS peft_pareto.counts(integer), peft_pareto.front_of(integer), peft_pareto.duplicate_of(integer, text, integer),
    peft_pareto.record_candidate(integer, jsonb), peft_pareto.settle(integer, text, text, boolean), peft_pareto.expire(integer);
DROP TRIGGER IF EXISTS guard ON peft_pareto.candidates;
DROP TRIGGER IF EXISTS guard ON peft_pareto.scores;
DROP TRIGGER IF EXISTS guard ON peft_pareto.leases;

ALTER TABLE peft_pareto.studies ADD COLUMN queue jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(queue) = 'array');
COMMENT ON COLUMN peft_pareto.studies.queue IS '[{"candidate": …, "why": text}]: to be run before anything is proposed';

ALTER TABLE peft_pareto.leases
    ALTER COLUMN worker DROP NOT NULL,
    ADD COLUMN losses integer NOT NULL DEFAULT 0 CHECK (losses >= 0),
    ADD COLUMN request text UNIQUE,
    ADD COLUMN left_by text,
    DROP CONSTRAINT leases_outcome_check,
    ADD CONSTRAINT leases_outcome_check
        CHECK (outcome IN ('finished', 'failed', 'duplicate', 'infeasible', 'expired', 'released'));
COMMENT ON COLUMN peft_pareto.leases.worker IS 'who holds it, NULL while nobody does; of an ended trial, who held it last';
COMMENT ON COLUMN peft_pareto.leases.losses IS 'how often it was lost since the last new rung';
COMMENT ON COLUMN peft_pareto.leases.request IS 'what the holder asked with: the same request again gives the same trial';
COMMENT ON COLUMN peft_pareto.leases.left_by IS 'who gave it back last, NULL if it ran out or was taken up since';

-- A study has few distinct sets of distributions, of some kilobytes each.
CREATE TABLE peft_pareto.distributions (
    distributions_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    digest text NOT NULL,
    json text NOT NULL,
    UNIQUE (study_id, digest)
);
COMMENT ON COLUMN peft_pareto.distributions.json IS 'JSON object, parameter -> Optuna''s distribution_to_json, keys in order';

ALTER TABLE peft_pareto.candidates
    ADD COLUMN root text,
    ADD COLUMN repeat integer NOT NULL DEFAULT 0 CHECK (repeat >= 0),
    ADD COLUMN parameters jsonb,
    ADD COLUMN distributions_id bigint REFERENCES peft_pareto.distributions (distributions_id) ON DELETE SET NULL,
    ADD COLUMN rungs integer[];
UPDATE peft_pareto.candidates SET root = hash, rungs = ARRAY[steps];
ALTER TABLE peft_pareto.candidates
    ALTER COLUMN root SET NOT NULL,
    ALTER COLUMN rungs SET NOT NULL,
    ADD CONSTRAINT candidates_end_at_their_last_rung CHECK (rungs[cardinality(rungs)] = steps);
CREATE INDEX candidates_by_root ON peft_pareto.candidates (study_id, root);
CREATE INDEX baselines_of_study ON peft_pareto.candidates (study_id) WHERE baseline IS NOT NULL;
CREATE INDEX repeats_of_study ON peft_pareto.candidates (study_id) WHERE repeat > 0;
-- Each proposal asks which trials are under way.
CREATE INDEX peft_pareto_live ON optuna.trials (study_id) WHERE state IN ('RUNNING', 'WAITING');
COMMENT ON COLUMN peft_pareto.candidates.root IS 'the candidate''s hash without its steps';
COMMENT ON COLUMN peft_pareto.candidates.repeat IS '0, 1, …: the same candidate run again on purpose, with another seed';
COMMENT ON COLUMN peft_pareto.candidates.parameters IS 'what the sampler proposed, by parameter name, as the space reads it';
COMMENT ON COLUMN peft_pareto.candidates.rungs IS 'numbers of steps at which it is to be evaluated, ascending';

CREATE TABLE peft_pareto.rungs (
    trial_id integer NOT NULL REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    steps integer NOT NULL,
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    recorded bigint GENERATED ALWAYS AS IDENTITY,
    hash text NOT NULL,
    words text NOT NULL,
    values double precision[] NOT NULL CHECK (array_position(values, NULL) IS NULL AND 'NaN' <> ALL (values)),
    seconds double precision NOT NULL,
    memory bigint,
    violations jsonb NOT NULL DEFAULT '{}',
    feasible boolean NOT NULL GENERATED ALWAYS AS (NOT violations @? '$.* ? (@ > 0)') STORED,
    again boolean NOT NULL DEFAULT false,
    reached_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (trial_id, steps)
);
CREATE UNIQUE INDEX rungs_by_record ON peft_pareto.rungs (study_id, recorded);
CREATE INDEX rungs_by_hash ON peft_pareto.rungs (study_id, hash);
COMMENT ON COLUMN peft_pareto.rungs.recorded IS 'ascending in the order of commits within a study';
COMMENT ON COLUMN peft_pareto.rungs.hash IS 'of the candidate that stops here';
COMMENT ON COLUMN peft_pareto.rungs.values IS 'the objectives'' scores in their order; of a joint_reward study: [q, m]';
COMMENT ON COLUMN peft_pareto.rungs.seconds IS 'busy seconds of the trial until these scores, over all its workers';
COMMENT ON COLUMN peft_pareto.rungs.memory IS 'peak bytes';
COMMENT ON COLUMN peft_pareto.rungs.violations IS 'constraint -> number, > 0 = violated';
COMMENT ON COLUMN peft_pareto.rungs.again IS 'another trial had evaluated this very rung and repeat before: no point of its own';

ALTER TABLE peft_pareto.scores ADD COLUMN steps integer, ADD COLUMN replicates real[]
    CHECK (cardinality(replicates) = 256 AND array_position(replicates, NULL) IS NULL AND 'NaN' <> ALL (replicates));
UPDATE peft_pareto.scores s SET steps = coalesce((SELECT steps FROM peft_pareto.candidates c WHERE c.trial_id = s.trial_id), 0);
ALTER TABLE peft_pareto.scores
    ALTER COLUMN steps SET NOT NULL,
    DROP CONSTRAINT scores_pkey,
    ADD PRIMARY KEY (trial_id, steps, name);
COMMENT ON COLUMN peft_pareto.scores.replicates IS 'the score in 256 bootstrap draws of patients, the same draws in every trial';

-- Every finished trial of before has one rung: its end.
WITH told AS (
    SELECT t.trial_id, t.number, s.study_id, CASE
            WHEN s.objectives = '["joint_reward"]' THEN (
                SELECT array_agg(x.value ORDER BY x.name = s.memorization) FROM peft_pareto.scores x
                WHERE x.trial_id = t.trial_id AND x.name IN (s.quality, s.memorization) HAVING count(*) = 2)
            ELSE (
                SELECT array_agg(v.value ORDER BY v.objective) FROM optuna.trial_values v
                WHERE v.trial_id = t.trial_id HAVING bool_and(v.value_type = 'FINITE' AND v.value <> 'NaN'))
            END AS values,
            extract(epoch FROM t.datetime_complete - t.datetime_start)::double precision AS span
        FROM optuna.trials t JOIN peft_pareto.studies s ON s.study_id = t.study_id WHERE t.state = 'COMPLETE'
)
INSERT INTO peft_pareto.rungs (trial_id, steps, study_id, hash, words, values, seconds, reached_at)
    SELECT c.trial_id, c.steps, c.study_id, c.hash, c.words, told.values, coalesce(c.seconds, told.span, 0),
           coalesce(l.settled_at, clock_timestamp())
        FROM told
        JOIN peft_pareto.candidates c ON c.trial_id = told.trial_id
        LEFT JOIN peft_pareto.leases l ON l.trial_id = told.trial_id
        WHERE told.values IS NOT NULL ORDER BY told.study_id, l.settled_at, told.number;
ALTER TABLE peft_pareto.candidates DROP COLUMN seconds, DROP COLUMN recorded;

CREATE TABLE peft_pareto.hypervolumes (
    trial_id integer PRIMARY KEY REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    finished integer NOT NULL,
    seconds double precision NOT NULL,
    hypervolume double precision NOT NULL CHECK (hypervolume <> 'NaN')
);
CREATE INDEX hypervolumes_of_study ON peft_pareto.hypervolumes (study_id);
COMMENT ON COLUMN peft_pareto.hypervolumes.finished IS 'how many trials of the study were finished with this one';
COMMENT ON COLUMN peft_pareto.hypervolumes.seconds IS 'busy seconds of all finished trials of the study until then';
