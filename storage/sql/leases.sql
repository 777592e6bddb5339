-- The life of a trial, as the database enforces it, in studies that are in peft_pareto.studies. Others are left alone.
--
--   (nothing) -- enqueued -> WAITING    by anybody
--   (nothing) -- started  -> RUNNING    by a worker, if finished + running < studies.trials; it gets the lease
--   WAITING   -- started  -> RUNNING    the same
--   WAITING   -- withdrawn-> FAIL       by anybody
--   RUNNING   -- heartbeat, settled -> RUNNING   by the holder while the lease has not run out
--   RUNNING   -- told     -> COMPLETE, PRUNED    by the holder in time, lease settled as 'finished'
--   RUNNING   -- told     -> FAIL       by the holder in time, lease settled as 'failed', 'duplicate' or 'released'
--   RUNNING   -- expired  -> FAIL       by anybody, through peft_pareto.expire(), once the lease has run out
--
-- COMPLETE, PRUNED and FAIL are ends. Order of locks, in every path: Optuna's study, trial, peft_pareto.studies, lease.

-- Admission, at COMMIT (deferred): Optuna inserts an enqueued trial as RUNNING and makes it WAITING in one transaction.
-- Locks the row of peft_pareto.studies, so that two workers cannot both take the last place; the count that follows has
-- a newer snapshot than the lock (READ COMMITTED).
CREATE OR REPLACE FUNCTION peft_pareto.admit_trial() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    now_state text;
    study peft_pareto.studies;
    taken bigint;
BEGIN
    SELECT state INTO now_state FROM optuna.trials WHERE trial_id = NEW.trial_id;
    IF NOT FOUND OR now_state = 'WAITING' OR NOT peft_pareto.is_ours(NEW.trial_id) THEN
        RETURN NULL;
    END IF;
    IF now_state <> 'RUNNING' THEN
        PERFORM peft_pareto.refuse(NEW.trial_id, 'a trial of this study cannot be added finished');
    END IF;
    IF peft_pareto.worker() IS NULL THEN
        RAISE EXCEPTION 'trial % cannot start without a worker', NEW.trial_id
            USING ERRCODE = '23PP3', DETAIL = json_build_object('trial', NEW.trial_id)::text;
    END IF;
    SELECT * INTO study FROM peft_pareto.studies WHERE study_id = NEW.study_id FOR NO KEY UPDATE;
    SELECT count(*) INTO taken FROM optuna.trials
        WHERE study_id = NEW.study_id AND state IN ('COMPLETE', 'PRUNED', 'RUNNING');
    IF taken > study.trials THEN
        RAISE EXCEPTION 'study % has its % trials finished or running', study.study_id, study.trials
            USING ERRCODE = '23PP1',
                  DETAIL = json_build_object('study', study.study_id, 'trials', study.trials)::text;
    END IF;
    INSERT INTO peft_pareto.leases (trial_id, study_id, worker, expires_at)
        VALUES (NEW.trial_id, NEW.study_id, peft_pareto.worker(),
                clock_timestamp() + make_interval(secs => study.lease_seconds));
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS peft_pareto_admit_new ON optuna.trials;
CREATE CONSTRAINT TRIGGER peft_pareto_admit_new AFTER INSERT ON optuna.trials
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION peft_pareto.admit_trial();

DROP TRIGGER IF EXISTS peft_pareto_admit_waiting ON optuna.trials;
CREATE CONSTRAINT TRIGGER peft_pareto_admit_waiting AFTER UPDATE OF state ON optuna.trials
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.state = 'WAITING' AND NEW.state = 'RUNNING')
    EXECUTE FUNCTION peft_pareto.admit_trial();

-- Changes of a trial's row. The caller holds the row; the lease is locked FOR SHARE by objection().
CREATE OR REPLACE FUNCTION peft_pareto.guard_trial() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    held peft_pareto.leases;
    objection text;
BEGIN
    IF NOT peft_pareto.is_ours(OLD.trial_id) THEN
        RETURN NEW;
    END IF;
    IF NEW.trial_id <> OLD.trial_id OR NEW.study_id <> OLD.study_id THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, 'a trial cannot be moved');
    ELSIF OLD.state IN ('COMPLETE', 'PRUNED', 'FAIL') THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, format('it is already %s', OLD.state));
    ELSIF OLD.state = NEW.state OR (OLD.state = 'WAITING' AND NEW.state IN ('RUNNING', 'FAIL')) THEN
        RETURN NEW;
    ELSIF OLD.state = 'WAITING' THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, format('it was not started and cannot be %s', NEW.state));
    END IF;
    SELECT * INTO held FROM peft_pareto.leases WHERE trial_id = OLD.trial_id;
    IF NEW.state = 'WAITING' AND held IS NULL OR NEW.state = 'FAIL' AND held.outcome = 'expired' THEN
        RETURN NEW;
    END IF;
    objection := coalesce(peft_pareto.objection(OLD.trial_id), CASE
        WHEN NEW.state IN ('COMPLETE', 'PRUNED') AND held.outcome = 'finished' THEN NULL
        WHEN NEW.state = 'FAIL' AND held.outcome IN ('failed', 'duplicate', 'released') THEN NULL
        ELSE format('its lease is settled as %s, which does not go with %s',
                    coalesce(held.outcome, 'nothing yet'), NEW.state) END);
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, objection);
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS peft_pareto_guard ON optuna.trials;
CREATE TRIGGER peft_pareto_guard BEFORE UPDATE ON optuna.trials
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION peft_pareto.guard_trial();

-- Changes of a lease: by its holder in time, or to 'expired' after it has run out. The caller holds the row.
CREATE OR REPLACE FUNCTION peft_pareto.guard_lease() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    state_now text;
    in_time boolean := OLD.expires_at > clock_timestamp();
BEGIN
    SELECT state INTO state_now FROM optuna.trials WHERE trial_id = OLD.trial_id;
    PERFORM peft_pareto.refuse(OLD.trial_id, why) FROM (SELECT CASE
        WHEN state_now <> 'RUNNING' THEN format('it is already %s', state_now)
        WHEN NEW.trial_id <> OLD.trial_id OR NEW.worker <> OLD.worker THEN 'a lease cannot be handed on'
        WHEN NEW.outcome = 'expired' AND in_time THEN format('its lease runs until %s', OLD.expires_at)
        WHEN NEW.outcome = 'expired' THEN NULL
        WHEN OLD.worker IS DISTINCT FROM peft_pareto.worker() THEN format('its lease belongs to %s', OLD.worker)
        WHEN NOT in_time THEN format('its lease ran out at %s', OLD.expires_at) END AS why) AS found
        WHERE why IS NOT NULL;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER guard BEFORE UPDATE ON peft_pareto.leases
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_lease();

-- What a trial has written belongs to its holder; rows go only together with their trial. Weights and pictures may be
-- deleted later, when the trial is no longer on the front. Locks the lease FOR SHARE.
CREATE OR REPLACE FUNCTION peft_pareto.guard_rows() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    trial integer := CASE WHEN TG_OP = 'DELETE' THEN OLD.trial_id ELSE NEW.trial_id END;
    objection text;
BEGIN
    IF TG_OP = 'DELETE' AND pg_trigger_depth() > 1 OR NOT peft_pareto.is_ours(trial) THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    objection := peft_pareto.objection(trial);
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(trial, objection);
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;

CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON peft_pareto.scores
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_rows();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON peft_pareto.loss_curves
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_rows();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON peft_pareto.candidates
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_rows();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE ON peft_pareto.artifacts
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_rows();
-- Optuna deletes a study's values row by row, so that deletion stays free here.
CREATE OR REPLACE TRIGGER peft_pareto_guard BEFORE INSERT OR UPDATE ON optuna.trial_values
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_rows();

-- Extends a lease from now on, and notes what the worker is at; gives the lease's length in seconds. Locks the lease.
CREATE OR REPLACE FUNCTION peft_pareto.heartbeat(trial integer, stage_now text) RETURNS double precision
    LANGUAGE plpgsql AS
$$
DECLARE
    seconds double precision;
BEGIN
    UPDATE peft_pareto.leases l
        SET heartbeat_at = clock_timestamp(), stage = coalesce(stage_now, l.stage),
            expires_at = clock_timestamp() + make_interval(secs => s.lease_seconds)
        FROM peft_pareto.studies s WHERE l.trial_id = trial AND s.study_id = l.study_id
        RETURNING s.lease_seconds INTO seconds;
    IF seconds IS NULL THEN
        PERFORM peft_pareto.refuse(trial, 'nobody holds a lease on it');
    END IF;
    RETURN seconds;
END
$$;

-- Says how the trial ends, right before Optuna is told; extends the lease so that telling is in time. Locks the lease.
CREATE OR REPLACE FUNCTION peft_pareto.settle(trial integer, how text, why text, own boolean) RETURNS void
    LANGUAGE plpgsql AS
$$
BEGIN
    IF how = 'expired' THEN
        PERFORM peft_pareto.refuse(trial, 'only peft_pareto.expire() settles a lease as expired');
    END IF;
    PERFORM peft_pareto.heartbeat(trial, NULL);
    UPDATE peft_pareto.leases
        SET outcome = how, reason = why, own_cause = own, settled_at = clock_timestamp() WHERE trial_id = trial;
END
$$;

-- Fails the study's trials whose lease has run out by the server's clock; gives their numbers. Locks trials and leases,
-- but skips those that are locked (their holder is writing, or another worker is here too), so that it never waits.
CREATE OR REPLACE FUNCTION peft_pareto.expire(study integer) RETURNS SETOF integer LANGUAGE plpgsql AS
$$
DECLARE
    late record;
BEGIN
    FOR late IN
        SELECT t.trial_id, t.number, l.worker, l.heartbeat_at
            FROM optuna.trials t JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
            WHERE t.study_id = study AND t.state = 'RUNNING' AND l.expires_at <= clock_timestamp()
            ORDER BY t.trial_id FOR UPDATE OF t, l SKIP LOCKED
    LOOP
        UPDATE peft_pareto.leases
            SET outcome = 'expired', own_cause = false, settled_at = clock_timestamp(),
                reason = format('worker %s was last heard of at %s', late.worker, late.heartbeat_at)
            WHERE trial_id = late.trial_id;
        UPDATE optuna.trials SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp())
            WHERE trial_id = late.trial_id;
        RETURN NEXT late.number;
    END LOOP;
END
$$;

-- One row: how many trials are where. A withdrawn WAITING trial (FAIL without a lease) counts nowhere.
-- duplicates_in_a_row: duplicates since the last trial that was settled otherwise by its worker. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.counts(study integer) RETURNS TABLE (
    trials integer, finished bigint, running bigint, waiting bigint, failed bigint, duplicates bigint, expired bigint,
    released bigint, duplicates_in_a_row bigint) LANGUAGE sql STABLE AS
$$
    WITH rows AS (SELECT t.number, t.state, l.outcome FROM optuna.trials t
                  LEFT JOIN peft_pareto.leases l ON l.trial_id = t.trial_id WHERE t.study_id = study),
    last AS (SELECT coalesce(max(number), -1) AS number FROM rows
             WHERE state IN ('COMPLETE', 'PRUNED') OR state = 'FAIL' AND outcome = 'failed')
    SELECT s.trials,
           count(*) FILTER (WHERE state IN ('COMPLETE', 'PRUNED')),
           count(*) FILTER (WHERE state = 'RUNNING'),
           count(*) FILTER (WHERE state = 'WAITING'),
           count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'failed'),
           count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'duplicate'),
           count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'expired'),
           count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'released'),
           count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'duplicate' AND rows.number > last.number)
        FROM peft_pareto.studies s CROSS JOIN last LEFT JOIN rows ON true WHERE s.study_id = study GROUP BY s.trials
$$;
