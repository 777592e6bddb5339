-- The life of a trial, as the database enforces it, in studies that are in peft_pareto.studies. Others are left alone.
--
--   (nothing) -- enqueued   -> WAITING   by anybody
--   (nothing) -- started    -> RUNNING   by a named worker, if finished + running < studies.trials; lease to it. Through sql/trials.sql, as
--                                        all workers do, only if it has the study's code, and if nothing is in the way (`in_the_way`)
--   (nothing) -- refused    -> FAIL      outcome duplicate | infeasible: a proposal that was never run, in one go; counts
--                                        neither as finished, running nor failed
--   WAITING   -- taken up   -> RUNNING   by a named worker, the same admission; lease to the taker
--   WAITING   -- withdrawn  -> FAIL      by anybody, if it was never taken up
--   RUNNING   -- heartbeat, rung -> RUNNING   by the holder in time; a NEW rung resets losses to 0
--   RUNNING   -- told       -> COMPLETE | PRUNED (outcome finished), FAIL (failed, or, of an enqueued trial that turned
--                              out so, duplicate | infeasible)     by the holder in time
--   RUNNING   -- left       -> WAITING   by the holder in time: released (not counted), or for a reason (a loss)
--   RUNNING   -- expired    -> WAITING   by anybody, once the lease has run out by the server's clock; a loss
--   RUNNING   -- left or expired, as the most_losses()th loss without a new rung -> FAIL   outcome failed
--
-- COMPLETE, PRUNED and FAIL are ends. Outcomes 'expired' and 'released' are those of studies of before, where such
-- trials failed. What the lease says comes first, then the trial follows in the same transaction; at COMMIT they agree.
-- Order of locks, in every path: Optuna's study, trial, peft_pareto.studies, lease. A rung's record, which begins with
-- peft_pareto.studies, locks no trial but against deletion.

-- Admission, at COMMIT if Optuna starts the trial (deferred: it inserts an enqueued trial as RUNNING and makes it WAITING
-- in one transaction), at once in sql/trials.sql. Locks the row of peft_pareto.studies, so that two workers cannot both
-- take the last place; the count that follows has a newer snapshot than the lock (READ COMMITTED).
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
    IF now_state = 'FAIL' AND EXISTS (SELECT FROM peft_pareto.leases
            WHERE trial_id = NEW.trial_id AND outcome IN ('duplicate', 'infeasible', 'failed')) THEN
        RETURN NULL;
    END IF;
    IF now_state <> 'RUNNING' THEN
        PERFORM peft_pareto.refuse(NEW.trial_id, 'a trial of this study cannot be added finished');
    END IF;
    PERFORM peft_pareto.demand_worker(NEW.trial_id);
    SELECT * INTO study FROM peft_pareto.studies WHERE study_id = NEW.study_id FOR NO KEY UPDATE;
    SELECT count(*) INTO taken FROM optuna.trials
        WHERE study_id = NEW.study_id AND state IN ('COMPLETE', 'PRUNED', 'RUNNING');
    IF taken > study.trials THEN
        RAISE EXCEPTION 'study % has its % trials finished or running', study.study_id, study.trials
            USING ERRCODE = '23PP1',
                  DETAIL = json_build_object('study', study.study_id, 'trials', study.trials)::text;
    END IF;
    INSERT INTO peft_pareto.leases (trial_id, study_id, worker, request, expires_at)
        VALUES (NEW.trial_id, NEW.study_id, peft_pareto.worker(), nullif(current_setting('peft_pareto.request', true), ''),
                clock_timestamp() + make_interval(secs => study.lease_seconds))
        ON CONFLICT (trial_id) DO UPDATE
            SET worker = excluded.worker, request = excluded.request, leased_at = excluded.leased_at,
                heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at, left_by = NULL;
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
    why text;
BEGIN
    IF NOT peft_pareto.is_ours(OLD.trial_id) THEN
        RETURN NEW;
    END IF;
    SELECT * INTO held FROM peft_pareto.leases WHERE trial_id = OLD.trial_id;
    why := CASE
        WHEN NEW.trial_id <> OLD.trial_id OR NEW.study_id <> OLD.study_id THEN 'a trial cannot be moved'
        WHEN OLD.state IN ('COMPLETE', 'PRUNED', 'FAIL') THEN format('it is already %s', OLD.state)
        WHEN OLD.state = NEW.state THEN NULL
        WHEN OLD.state = 'WAITING' AND NEW.state = 'RUNNING' THEN NULL
        WHEN OLD.state = 'WAITING' AND NEW.state = 'FAIL' AND held.trial_id IS NULL THEN NULL
        WHEN OLD.state = 'WAITING' AND NEW.state = 'FAIL' THEN 'it waits to be taken up again'
        WHEN OLD.state = 'WAITING' THEN format('it was not started and cannot be %s', NEW.state)
        WHEN NEW.state = 'WAITING' AND (held.trial_id IS NULL OR held.worker IS NULL AND held.outcome IS NULL) THEN NULL
        WHEN NEW.state IN ('COMPLETE', 'PRUNED') AND held.outcome = 'finished' THEN NULL
        WHEN NEW.state = 'FAIL' AND held.outcome IN ('failed', 'duplicate', 'infeasible') THEN NULL
        ELSE coalesce(peft_pareto.objection(OLD.trial_id), format('its lease is settled as %s, which does not go with %s',
            coalesce(held.outcome, 'nothing yet'), NEW.state)) END;
    IF why IS NOT NULL THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, why);
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS peft_pareto_guard ON optuna.trials;
CREATE TRIGGER peft_pareto_guard BEFORE UPDATE ON optuna.trials
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION peft_pareto.guard_trial();

-- Changes of a lease: by admission (a trigger, hence the depth), by its holder in time, or as a loss after it has run
-- out. The caller holds the row.
CREATE OR REPLACE FUNCTION peft_pareto.guard_lease() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    state_now text;
    lost_again boolean;
    why text;
BEGIN
    SELECT state INTO state_now FROM optuna.trials WHERE trial_id = NEW.trial_id;
    IF TG_OP = 'INSERT' THEN
        IF pg_trigger_depth() = 1 AND NOT (state_now = 'FAIL' AND coalesce(NEW.outcome IN ('duplicate', 'infeasible', 'failed'), false)
                AND NEW.worker = peft_pareto.worker()) THEN
            PERFORM peft_pareto.refuse(NEW.trial_id, 'a lease is given by starting the trial');
        END IF;
        RETURN NEW;
    END IF;
    lost_again := NEW.losses = OLD.losses + 1 AND CASE WHEN NEW.losses < peft_pareto.most_losses()
        THEN NEW.worker IS NULL AND NEW.outcome IS NULL
        ELSE NEW.worker = OLD.worker AND NEW.outcome = 'failed' END;
    why := CASE
        WHEN NEW.trial_id <> OLD.trial_id THEN 'a lease cannot be moved'
        WHEN OLD.outcome IS NOT NULL THEN format('it is already %s', state_now)
        WHEN OLD.worker IS NULL AND state_now = 'RUNNING' AND NEW.worker = peft_pareto.worker() AND NEW.outcome IS NULL
             AND pg_trigger_depth() > 1 THEN NULL
        WHEN OLD.worker IS NULL THEN 'nobody holds a lease on it'
        WHEN NEW.worker <> OLD.worker THEN 'a lease cannot be handed on'
        WHEN OLD.expires_at <= clock_timestamp() AND lost_again THEN NULL
        WHEN OLD.worker IS DISTINCT FROM peft_pareto.worker() THEN format('its lease belongs to %s', OLD.worker)
        WHEN OLD.expires_at <= clock_timestamp() THEN format('its lease ran out at %s', OLD.expires_at)
        WHEN NEW.outcome IS NULL AND NEW.losses > OLD.losses AND NOT lost_again THEN 'it was lost too often'
        END;
    IF why IS NOT NULL THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, why);
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE ON peft_pareto.leases
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.guard_lease();

-- At COMMIT, a trial's state and its lease say the same, so that no path can leave a trial RUNNING that nobody holds.
CREATE OR REPLACE FUNCTION peft_pareto.demand_agreement() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    found record;
BEGIN
    SELECT t.state::text AS state, l.worker, l.outcome INTO found
        FROM optuna.trials t JOIN peft_pareto.leases l ON l.trial_id = t.trial_id WHERE t.trial_id = NEW.trial_id;
    IF found.state <> ALL (CASE
            WHEN found.outcome = 'finished' THEN ARRAY['COMPLETE', 'PRUNED']
            WHEN found.outcome IS NOT NULL THEN ARRAY['FAIL']
            WHEN found.worker IS NULL THEN ARRAY['WAITING']
            ELSE ARRAY['RUNNING'] END) THEN
        PERFORM peft_pareto.refuse(NEW.trial_id, format('it is %s, which does not go with its lease (worker %s, outcome %s)',
            found.state, coalesce(found.worker, '(none)'), coalesce(found.outcome, '(none)')));
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS agree_new ON peft_pareto.leases;
CREATE CONSTRAINT TRIGGER agree_new AFTER INSERT ON peft_pareto.leases
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION peft_pareto.demand_agreement();
DROP TRIGGER IF EXISTS agree ON peft_pareto.leases;
CREATE CONSTRAINT TRIGGER agree AFTER UPDATE ON peft_pareto.leases
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.worker IS DISTINCT FROM NEW.worker OR OLD.outcome IS DISTINCT FROM NEW.outcome)
    EXECUTE FUNCTION peft_pareto.demand_agreement();

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
    IF TG_OP = 'UPDATE' AND OLD.trial_id <> NEW.trial_id THEN
        PERFORM peft_pareto.refuse(OLD.trial_id, 'what it has written cannot be moved to another trial');
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
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON peft_pareto.rungs
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

-- One row: how many trials are where. A withdrawn trial (FAIL without a lease) counts nowhere.
-- duplicates_in_a_row, infeasible_in_a_row: such proposals since the last trial that was run; duplicates also only since the
-- last that ended, since what was refused because of a running trial may be new once that has ended. Locks nothing.
DROP FUNCTION IF EXISTS peft_pareto.counts(integer);
CREATE FUNCTION peft_pareto.counts(study integer) RETURNS TABLE (
    trials integer, finished bigint, stopped bigint, running bigint, waiting bigint, failed bigint, duplicates bigint,
    infeasible bigint, expired bigint, released bigint, duplicates_in_a_row bigint, infeasible_in_a_row bigint, overdue boolean,
    code text)
    LANGUAGE sql STABLE AS
$$
    WITH ran AS (
        SELECT count(*) FILTER (WHERE t.state IN ('COMPLETE', 'PRUNED')) AS finished, count(*) FILTER (WHERE t.state = 'PRUNED') AS stopped,
               count(*) FILTER (WHERE t.state = 'RUNNING') AS running,
               max(t.number) FILTER (WHERE t.state IN ('COMPLETE', 'PRUNED', 'RUNNING')) AS last,
               max(t.datetime_complete) FILTER (WHERE t.state IN ('COMPLETE', 'PRUNED')) AT TIME ZONE 'UTC' AS ended
            FROM optuna.trials t WHERE t.study_id = study
    ), others AS MATERIALIZED (
        SELECT t.number, t.state, l.outcome, l.settled_at, l.trial_id IS NOT NULL AND l.outcome IN ('duplicate', 'infeasible') IS NOT TRUE AS was_run
            FROM optuna.trials t LEFT JOIN peft_pareto.leases l ON l.trial_id = t.trial_id WHERE t.study_id = study AND t.state IN ('WAITING', 'FAIL')
    ), last AS (
        SELECT greatest((SELECT ran.last FROM ran), max(number) FILTER (WHERE was_run), -1) AS number,
               greatest((SELECT ran.ended FROM ran), max(settled_at) FILTER (WHERE was_run), '-infinity') AS ended
            FROM others
    )
    SELECT s.trials, ran.finished, ran.stopped, ran.running, n.waiting, n.failed, n.duplicates, n.infeasible, n.expired, n.released,
           n.duplicates_in_a_row, n.infeasible_in_a_row,
           coalesce(extract(epoch FROM clock_timestamp()) > (s.settings #>> '{free,deadline}')::double precision, false),
           s.settings #>> '{free,code}'
        FROM peft_pareto.studies s CROSS JOIN ran CROSS JOIN (
            SELECT count(*) FILTER (WHERE state = 'WAITING') AS waiting,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'failed') AS failed,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'duplicate') AS duplicates,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'infeasible') AS infeasible,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'expired') AS expired,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'released') AS released,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'duplicate' AND others.number > last.number
                                          AND others.settled_at > last.ended) AS duplicates_in_a_row,
                   count(*) FILTER (WHERE state = 'FAIL' AND outcome = 'infeasible' AND others.number > last.number) AS infeasible_in_a_row
                FROM others CROSS JOIN last) AS n
        WHERE s.study_id = study
$$;
