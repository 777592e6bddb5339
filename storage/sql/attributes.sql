-- Optuna's attributes as storage/attributes.py writes them.

-- Attributes of a trial, and of its study under keys of that trial's own; again, they replace. Locks the lease FOR SHARE.
CREATE OR REPLACE FUNCTION peft_pareto.write_attributes(
    trial integer, own_keys text[], own_values text[], study_keys text[], study_values text[]) RETURNS void LANGUAGE plpgsql AS
$$
DECLARE
    objection text := peft_pareto.objection(trial);
BEGIN
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(trial, objection);
    END IF;
    INSERT INTO optuna.trial_system_attributes (trial_id, key, value_json)
        SELECT trial, given.key, given.value FROM unnest(own_keys, own_values) AS given (key, value)
        ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
    INSERT INTO optuna.study_system_attributes (study_id, key, value_json)
        SELECT t.study_id, given.key, given.value FROM unnest(study_keys, study_values) AS given (key, value)
            CROSS JOIN optuna.trials t WHERE t.trial_id = trial
        ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json;
END
$$;
