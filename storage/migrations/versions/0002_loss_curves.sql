-- The denoising loss at common noise and timesteps, measured every so many steps of a training.
-- Locking: creating a foreign key takes SHARE ROW EXCLUSIVE on Optuna's trials for a moment.

CREATE TABLE peft_pareto.loss_curves (
    trial_id integer NOT NULL REFERENCES optuna.trials (trial_id) ON DELETE CASCADE,
    step integer NOT NULL CHECK (step >= 0),
    train double precision NOT NULL CHECK (train <> 'NaN'),
    twin double precision NOT NULL CHECK (twin <> 'NaN'),
    PRIMARY KEY (trial_id, step)
);
COMMENT ON TABLE peft_pareto.loss_curves IS 'mean denoising loss of pictures that are learned from (train) and never seen (twin), by step';
