-- What several files need: who is asking, and how a refusal looks. `optuna.` stands for the schema of Optuna's tables.
-- SQLSTATEs: PP002 lease lost, PP004 a value that must not be stored, PP005 not to be started now, PP006 other code, PP007 other rules,
-- 23PP1 study full, 23PP3 no worker. The last two are of class 23 (integrity), since Optuna tries any other error of a new trial
-- five times, with pauses, before it tells. PP002 must not be of class 23: Optuna would take it for a lost race in set_trial_state_values and say nothing.

-- The worker's name that the connection carries, NULL if none. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.worker() RETURNS text LANGUAGE sql STABLE AS
$$ SELECT nullif(current_setting('peft_pareto.worker', true), '') $$;

-- Raises PP002; the data for Python's LeaseLost are in DETAIL. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.refuse(trial integer, why text) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    RAISE EXCEPTION 'trial % may not be written by worker %: %', trial, coalesce(peft_pareto.worker(), '(none)'), why
        USING ERRCODE = 'PP002',
              DETAIL = json_build_object('trial', trial, 'worker', peft_pareto.worker(), 'why', why)::text;
END
$$;

-- Why the connection's worker may not write the trial now, NULL if it may. Locks the lease FOR SHARE until the
-- transaction ends, so that a write that was allowed is committed before the trial can expire or finish. The state may
-- have left RUNNING within this very transaction (xmin): a trial is told, or refused, in one.
CREATE OR REPLACE FUNCTION peft_pareto.objection(trial integer) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
    held record;
BEGIN
    SELECT l.worker, l.expires_at, t.state, t.xmin = pg_current_xact_id()::xid AS ours INTO held
        FROM peft_pareto.leases l JOIN optuna.trials t ON t.trial_id = l.trial_id
        WHERE l.trial_id = trial FOR SHARE OF l;
    RETURN CASE
        WHEN NOT FOUND OR held.worker IS NULL THEN 'nobody holds a lease on it'
        WHEN held.worker IS DISTINCT FROM peft_pareto.worker() THEN format('its lease belongs to %s', held.worker)
        WHEN held.state <> 'RUNNING' THEN CASE WHEN NOT held.ours THEN format('it is already %s', held.state) END
        WHEN held.expires_at <= clock_timestamp() THEN format('its lease ran out at %s', held.expires_at)
    END;
END
$$;

-- So many leases lost without a new rung fail a trial: it may be the one that kills its workers.
CREATE OR REPLACE FUNCTION peft_pareto.most_losses() RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT 3 $$;

-- Is the trial in a study of ours? Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.is_ours(trial integer) RETURNS boolean LANGUAGE sql STABLE AS
$$
    SELECT EXISTS (SELECT FROM optuna.trials t JOIN peft_pareto.studies s ON s.study_id = t.study_id
                   WHERE t.trial_id = trial)
$$;

-- Raises PP004, Python's BadValue. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.refuse_value(why text) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '%', why USING ERRCODE = 'PP004'; END $$;

-- Raises 23PP3, Python's NoWorker, if the connection carries no worker's name. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.demand_worker(trial integer) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    IF peft_pareto.worker() IS NULL THEN
        RAISE EXCEPTION 'trial % cannot start without a worker', trial
            USING ERRCODE = '23PP3', DETAIL = json_build_object('trial', trial)::text;
    END IF;
END
$$;

-- Raises PP005, Python's NotNow. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.refuse_now(study integer, why text) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    RAISE EXCEPTION 'study %: %', study, why USING ERRCODE = 'PP005', DETAIL = json_build_object('study', study, 'why', why)::text;
END
$$;

-- Raises PP006, Python's CodeDiffers, where the study was last launched with another code than the caller's (NULL: not said), and PP007, its
-- SchemaError, where these rules are others than the caller's (as the schema's comment names them). Asked for when the study's row is locked, which a
-- launch changes, and a trial's was written, which who changes the rules waits for.
CREATE OR REPLACE FUNCTION peft_pareto.demand_version(study integer, own_code text, own_rules text) RETURNS void LANGUAGE plpgsql AS
$$
DECLARE
    stored text := s.settings #>> '{free,code}' FROM peft_pareto.studies s WHERE s.study_id = study;
BEGIN
    IF stored <> own_code THEN
        RAISE EXCEPTION 'study % is run with code %, not with %', study, stored, own_code
            USING ERRCODE = 'PP006', DETAIL = json_build_object('study', study, 'stored', stored, 'own', own_code)::text;
    END IF;
    IF obj_description('peft_pareto'::regnamespace, 'pg_namespace') <> own_rules THEN
        RAISE EXCEPTION 'the store was set up by another version of peft-pareto since this worker joined: start it with that one' USING ERRCODE = 'PP007';
    END IF;
END
$$;
