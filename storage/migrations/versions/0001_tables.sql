-- Tables of the schema peft_pareto. `optuna.` stands for the schema of Optuna's tables.
-- Locking: creating a foreign key takes SHARE ROW EXCLUSIVE on Optuna's studies and trials for a moment.

CREATE TABLE peft_pareto.studies (
    study_id integer PRIMARY KEY REFERENCES optuna.studies (study_id) ON DELETE CASCADE,
    trials integer NOT NULL CHECK (trials > 0),
    lease_seconds double precision NOT NULL DEFAULT 60 CHECK (lease_seconds > 0),
    settings jsonb NOT NULL,
    objectives jsonb NOT NULL,
    directions jsonb NOT NULL,
    reward_weight double precision NOT NULL CHECK (reward_weight BETWEEN 0 AND 1),
    quality text NOT NULL,
    memorization text NOT NULL,
    q_base double precision,
    q_real double precision,
    m_base double precision,
    reference_scores jsonb,
    base jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN peft_pareto.studies.trials IS 'how many trials shall be finished (COMPLETE or PRUNED) in the end';
COMMENT ON COLUMN peft_pareto.studies.settings IS '{"binding": what decides what a score means, "free": the rest}';
COMMENT ON COLUMN peft_pareto.studies.objectives IS 'score names in the order of Optuna''s values';
COMMENT ON COLUMN peft_pareto.studies.directions IS 'score name -> "minimize" or "maximize", for every score';
COMMENT ON COLUMN peft_pareto.studies.quality IS 'the q of joint_reward: name of the first quality score';
COMMENT ON COLUMN peft_pareto.studies.memorization IS 'the m of joint_reward: name of the first memorization score';

CREATE TABLE peft_pareto.leases (
    trial_id integer PRIMARY KEY REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    worker text NOT NULL,
    leased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    stage text,
    outcome text CHECK (outcome IN ('finished', 'failed', 'duplicate', 'expired', 'released')),
    own_cause boolean NOT NULL DEFAULT false,
    reason text,
    settled_at timestamptz,
    CHECK ((outcome IS NULL) = (settled_at IS NULL))
);
CREATE INDEX leases_of_study ON peft_pareto.leases (study_id);
COMMENT ON COLUMN peft_pareto.leases.own_cause IS 'the candidate itself is to blame (NaN loss): do not try it again';

CREATE TABLE peft_pareto.candidates (
    trial_id integer PRIMARY KEY REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    recorded bigint GENERATED ALWAYS AS IDENTITY,
    hash text NOT NULL,
    words text NOT NULL,
    method text NOT NULL,
    steps integer NOT NULL,
    trainable bigint,
    trainable_share double precision,
    json jsonb NOT NULL,
    baseline text,
    yardstick boolean NOT NULL DEFAULT false,
    seconds double precision
);
CREATE INDEX candidates_by_hash ON peft_pareto.candidates (study_id, hash);
CREATE INDEX yardsticks_of_study ON peft_pareto.candidates (study_id) WHERE yardstick;

CREATE TABLE peft_pareto.scores (
    trial_id integer NOT NULL REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    name text NOT NULL,
    value double precision NOT NULL CHECK (value <> 'NaN'),
    low double precision CHECK (low <> 'NaN'),
    high double precision CHECK (high <> 'NaN'),
    PRIMARY KEY (trial_id, name)
);

CREATE TABLE peft_pareto.artifacts (
    trial_id integer NOT NULL REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    kind text NOT NULL,
    path text NOT NULL,
    PRIMARY KEY (trial_id, kind, path)
);
