-- The steps of a trial's life that storage/trials.py calls, each in one transaction, each safe to repeat after a lost
-- answer. Who may take which step is enforced by leases.sql. `optuna.` stands for the schema of Optuna's tables.

-- Optuna's parameters, attributes and our candidate of a trial; again, they replace. The caller holds the lease.
CREATE OR REPLACE FUNCTION peft_pareto.write_params(trial integer, names text[], internal double precision[], kinds text[])
    RETURNS void LANGUAGE sql AS
$$
    INSERT INTO optuna.trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT trial, given.name, given.value, given.kind
            FROM unnest(names, internal, kinds) WITH ORDINALITY AS given (name, value, kind, place) ORDER BY place
        ON CONFLICT (trial_id, param_name) DO UPDATE
            SET param_value = excluded.param_value, distribution_json = excluded.distribution_json
$$;

CREATE OR REPLACE FUNCTION peft_pareto.write_candidate(trial integer, study integer, candidate jsonb) RETURNS void
    LANGUAGE plpgsql AS
$$
DECLARE
    given peft_pareto.candidates := jsonb_populate_record(NULL::peft_pareto.candidates, candidate);
    kinds text := candidate ->> 'distributions';
BEGIN
    INSERT INTO peft_pareto.distributions (study_id, digest, json) VALUES (study, md5(kinds), kinds) ON CONFLICT DO NOTHING;
    SELECT d.distributions_id INTO given.distributions_id FROM peft_pareto.distributions d
        WHERE d.study_id = study AND d.digest = md5(kinds);
    given.trial_id := trial;
    given.study_id := study;
    INSERT INTO peft_pareto.candidates SELECT given.*
        ON CONFLICT (trial_id) DO UPDATE
            SET hash = excluded.hash, root = excluded.root, repeat = excluded.repeat, words = excluded.words,
                method = excluded.method, steps = excluded.steps, rungs = excluded.rungs, json = excluded.json,
                trainable = excluded.trainable, trainable_share = excluded.trainable_share, baseline = excluded.baseline,
                yardstick = excluded.yardstick, parameters = excluded.parameters,
                distributions_id = excluded.distributions_id;
END
$$;

-- Number of a trial of the same root and repeat by which running so many steps is useless: this rung was evaluated (which
-- counts first); or a trial is on its way there; was stopped, before it came there, on its way there or beyond; or failed by the
-- candidate's own fault before. NULL if there is none. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.duplicate_of(study integer, wanted text, wanted_steps integer, wanted_repeat integer)
    RETURNS integer LANGUAGE sql STABLE AS
$$
    SELECT t.number
        FROM peft_pareto.candidates c
        JOIN optuna.trials t ON t.trial_id = c.trial_id
        JOIN peft_pareto.leases l ON l.trial_id = c.trial_id
        LEFT JOIN peft_pareto.rungs r ON r.trial_id = c.trial_id AND r.steps = wanted_steps
        WHERE c.study_id = study AND c.root = wanted AND c.repeat = wanted_repeat
          AND (r.trial_id IS NOT NULL
               OR t.state IN ('RUNNING', 'WAITING') AND wanted_steps = ANY (c.rungs)
               OR t.state = 'PRUNED' AND c.steps >= wanted_steps
                   AND wanted_steps > coalesce((SELECT max(e.steps) FROM peft_pareto.rungs e WHERE e.trial_id = c.trial_id), 0)
               OR t.state = 'FAIL' AND l.outcome = 'failed' AND l.own_cause AND c.steps <= wanted_steps)
        ORDER BY r.trial_id IS NULL, t.number LIMIT 1
$$;

-- Number of a trial of the same root and repeat that runs, or was left and waits to be taken up; NULL if there is none. Two at a
-- time would pay twice for the same rungs, and write one file of states. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.under_way(study integer, wanted text, wanted_repeat integer) RETURNS integer
    LANGUAGE sql STABLE AS
$$
    SELECT min(t.number) FROM peft_pareto.candidates c JOIN optuna.trials t ON t.trial_id = c.trial_id
        WHERE c.study_id = study AND c.root = wanted AND c.repeat = wanted_repeat AND t.state IN ('RUNNING', 'WAITING')
$$;

DROP FUNCTION IF EXISTS peft_pareto.baseline_known_as(integer, text, integer, text);  -- of before

-- In words why a candidate is not worth starting, since it is known; NULL if it is worth it. The yardstick is begun even where it
-- was measured, and takes that over. A baseline is known by its last rung only: one that was stopped before is run to its end. Who
-- locks Optuna's study first, as all that start trials do, finds what nobody can change before it commits but trials that end.
CREATE OR REPLACE FUNCTION peft_pareto.known_as(study integer, candidate jsonb) RETURNS text LANGUAGE plpgsql STABLE AS
$$
DECLARE
    wanted text := candidate ->> 'root';
    wanted_steps integer := candidate ->> 'steps';
    wanted_repeat integer := candidate ->> 'repeat';
    named text := candidate ->> 'baseline';
BEGIN
    IF (candidate ->> 'yardstick')::boolean THEN
        RETURN NULL;
    ELSIF named IS NOT NULL THEN
        RETURN 'the same candidate as trial ' || (SELECT k.number FROM peft_pareto.known_rungs(study, wanted, wanted_repeat) k
                                                  WHERE k.steps = wanted_steps);
    END IF;
    RETURN coalesce('the same candidate as trial ' || peft_pareto.duplicate_of(study, wanted, wanted_steps, wanted_repeat),
                    'trial ' || peft_pareto.under_way(study, wanted, wanted_repeat)
                        || ' trains the same with another number of steps now');
END
$$;

-- In words why a yardstick, a baseline or a repeat is not to be started now, though it was when it was looked for: there is a yardstick
-- that has not failed; the same is trained by whatever trial, whose rungs it need not pay for again; or the repeated point is outdone, and its files are
-- deleted. NULL if nothing is in the way. Locks nothing: the caller has locked Optuna's study and ours.
CREATE OR REPLACE FUNCTION peft_pareto.in_the_way(study integer, candidate jsonb) RETURNS text LANGUAGE plpgsql STABLE AS
$$
DECLARE
    wanted_repeat integer := candidate ->> 'repeat';
    is_yardstick boolean := candidate ->> 'yardstick';
BEGIN
    RETURN coalesce(
        'the yardstick is trial ' || (SELECT min(t.number) FROM peft_pareto.candidates c JOIN optuna.trials t ON t.trial_id = c.trial_id
                                      WHERE is_yardstick AND c.study_id = study AND c.yardstick AND t.state IN ('RUNNING', 'WAITING', 'COMPLETE')),
        'the same is trained by trial ' || CASE WHEN is_yardstick OR candidate ->> 'baseline' IS NOT NULL
            THEN peft_pareto.under_way(study, candidate ->> 'root', wanted_repeat) END,
        'no more runs are needed of what cannot be on the front: ' || (SELECT candidate ->> 'words' FROM peft_pareto.points p
            WHERE wanted_repeat > 0 AND p.study_id = study AND p.hash = candidate ->> 'hash' AND p.outdone IS NOT NULL));
END
$$;

-- The yardstick's trial has the last rung of its candidate that another trial evaluated, as if it had evaluated it itself in no time.
CREATE OR REPLACE FUNCTION peft_pareto.take_over(trial integer, study integer, candidate jsonb) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    WITH known AS MATERIALIZED (
        SELECT * FROM peft_pareto.known_rungs(study, candidate ->> 'root', (candidate ->> 'repeat')::integer) k
            WHERE k.steps = (candidate ->> 'steps')::integer
    ), rung AS (
        INSERT INTO peft_pareto.rungs (trial_id, steps, study_id, hash, words, values, seconds, memory, violations, again)
            SELECT trial, k.steps, study, k.hash, k.words, k.values, 0, k.memory, k.violations, true FROM known k
    )
    INSERT INTO peft_pareto.scores (trial_id, steps, name, value, low, high, replicates)
        SELECT trial, x.steps, x.name, x.value, x.low, x.high, x.replicates
            FROM known k JOIN peft_pareto.scores x ON x.trial_id = k.trial_id AND x.steps = k.steps;
END
$$;

-- A new trial, running under a lease of the connection's worker, or refused (refused_as: duplicate, infeasible, failed) in one go;
-- as a duplicate also by what stands here now, whatever the caller knew. The same request again gives the same trial, while the
-- worker holds it or if it was refused. Raises PP005 where something is in the way, and writes nothing then. Locks Optuna's study as Optuna
-- does, since a trial's number is a count, then ours, so that nobody writes a rung or launches meanwhile.
DROP FUNCTION IF EXISTS peft_pareto.start(integer, text, text, text, jsonb, text[], double precision[], text[], text[], text[], text[], text[]),
    peft_pareto.start(integer, text, text, text, jsonb, text[], double precision[], text[], text[], text[], text[], text[], text, text);
CREATE FUNCTION peft_pareto.start(
    study integer, asked text, refused_as text, why text, candidate jsonb, names text[], internal double precision[],
    kinds text[], user_keys text[], user_values text[], system_keys text[], system_values text[], own_code text, own_rules text
) RETURNS TABLE (trial integer, place integer, outcome text) LANGUAGE plpgsql AS
$$
#variable_conflict use_column
DECLARE
    now_utc timestamp := timezone('UTC', clock_timestamp());
    known text;
    hindrance text;
BEGIN
    PERFORM FROM optuna.studies s WHERE s.study_id = study FOR UPDATE;
    SELECT t.trial_id, t.number, l.outcome INTO trial, place, outcome
        FROM peft_pareto.leases l JOIN optuna.trials t ON t.trial_id = l.trial_id
        WHERE l.request = asked AND l.worker = peft_pareto.worker()
          AND (l.outcome IS NULL OR t.datetime_complete = t.datetime_start);  -- at once only if it was refused
    IF FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM peft_pareto.demand_worker(NULL);
    PERFORM FROM peft_pareto.studies s WHERE s.study_id = study FOR NO KEY UPDATE;
    known := peft_pareto.known_as(study, candidate);
    IF known IS NOT NULL THEN
        refused_as := 'duplicate';
        why := known;
    END IF;
    hindrance := CASE WHEN refused_as IS NULL THEN peft_pareto.in_the_way(study, candidate) END;
    IF hindrance IS NOT NULL THEN
        PERFORM peft_pareto.refuse_now(study, hindrance);
    END IF;
    outcome := refused_as;
    place := count(*) FROM optuna.trials t WHERE t.study_id = study;
    IF refused_as IS NULL THEN
        INSERT INTO optuna.trials (study_id, number, state, datetime_start) VALUES (study, place, 'RUNNING', now_utc)
            RETURNING trial_id INTO trial;
        PERFORM set_config('peft_pareto.request', asked, true);
        SET CONSTRAINTS optuna.peft_pareto_admit_new IMMEDIATE;
    ELSE
        INSERT INTO optuna.trials (study_id, number, state, datetime_start, datetime_complete)
            VALUES (study, place, 'FAIL', now_utc, now_utc) RETURNING trial_id INTO trial;
        INSERT INTO peft_pareto.leases (trial_id, study_id, worker, request, expires_at, outcome, reason, settled_at)
            VALUES (trial, study, peft_pareto.worker(), asked, clock_timestamp(), refused_as, why, clock_timestamp());
    END IF;
    PERFORM peft_pareto.demand_version(study, own_code, own_rules);
    PERFORM peft_pareto.write_params(trial, names, internal, kinds);
    INSERT INTO optuna.trial_user_attributes (trial_id, key, value_json)
        SELECT trial, given.key, given.value FROM unnest(user_keys, user_values) AS given (key, value);
    INSERT INTO optuna.trial_system_attributes (trial_id, key, value_json)
        SELECT trial, given.key, given.value FROM unnest(system_keys, system_values) AS given (key, value);
    IF candidate IS NOT NULL THEN
        PERFORM peft_pareto.write_candidate(trial, study, candidate);
        IF (candidate ->> 'yardstick')::boolean THEN
            PERFORM peft_pareto.take_over(trial, study, candidate);
        END IF;
    END IF;
    RETURN NEXT;
END
$$;

-- Gives a waiting trial to the connection's worker: first those that were left, then enqueued ones, the oldest first.
-- One row with all that is needed to go on with it, or none. Passes over trials that another worker is taking.
DROP FUNCTION IF EXISTS peft_pareto.take(integer, text), peft_pareto.take(integer, text, text, text);
CREATE FUNCTION peft_pareto.take(study integer, asked text, own_code text, own_rules text) RETURNS TABLE (
    trial_id integer, number integer, candidate jsonb, repeat integer, baseline text, yardstick boolean, parameters jsonb,
    losses integer, user_attrs jsonb, fixed_params text, ahead integer[], rungs jsonb) LANGUAGE plpgsql AS
$$
#variable_conflict use_column
DECLARE
    trial integer;
BEGIN
    SELECT l.trial_id INTO trial FROM peft_pareto.leases l
        WHERE l.request = asked AND l.worker = peft_pareto.worker() AND l.outcome IS NULL;
    IF trial IS NULL THEN
        PERFORM peft_pareto.demand_worker(NULL);
        SELECT t.trial_id INTO trial
            FROM optuna.trials t LEFT JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
            WHERE t.study_id = study AND t.state = 'WAITING'
            ORDER BY l.trial_id IS NULL, t.number LIMIT 1 FOR NO KEY UPDATE OF t SKIP LOCKED;
        IF trial IS NULL THEN
            RETURN;
        END IF;
        PERFORM set_config('peft_pareto.request', asked, true);
        UPDATE optuna.trials t
            SET state = 'RUNNING', datetime_start = coalesce(t.datetime_start, timezone('UTC', clock_timestamp()))
            WHERE t.trial_id = trial;
        SET CONSTRAINTS optuna.peft_pareto_admit_waiting IMMEDIATE;
        PERFORM peft_pareto.demand_version(study, own_code, own_rules);
    END IF;
    RETURN QUERY
        SELECT t.trial_id, t.number, c.json, coalesce(c.repeat, 0), c.baseline, coalesce(c.yardstick, false), c.parameters, l.losses,
               coalesce((SELECT jsonb_object_agg(a.key, a.value_json) FROM optuna.trial_user_attributes a
                         WHERE a.trial_id = trial), '{}'),
               (SELECT a.value_json FROM optuna.trial_system_attributes a WHERE a.trial_id = trial AND a.key = 'fixed_params'), c.rungs,
               coalesce((SELECT jsonb_agg(jsonb_build_array(r.steps, r.seconds) ORDER BY r.steps) FROM peft_pareto.rungs r
                         WHERE r.trial_id = trial), '[]')
            FROM optuna.trials t
            JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
            LEFT JOIN peft_pareto.candidates c ON c.trial_id = t.trial_id
            WHERE t.trial_id = trial;
END
$$;

-- Ends a trial: the lease is settled, and Optuna's state and values follow. The same again by the same worker does
-- nothing. Where a repeat fails, points that waited for it may be outdone (one that is lost for good leaves that to the next rung). Locks the trial,
-- then, where a repeat fails, the study's row, then the lease.
CREATE OR REPLACE FUNCTION peft_pareto.tell(
    trial integer, how text, state_then text, scores double precision[], why text, own boolean) RETURNS void
    LANGUAGE plpgsql AS
$$
DECLARE
    told optuna.trials;
    held peft_pareto.leases;
    objectives bigint;
    is_awaited boolean := state_then = 'FAIL' AND EXISTS (SELECT FROM peft_pareto.candidates c WHERE c.trial_id = trial AND c.repeat > 0);
BEGIN
    SELECT * INTO told FROM optuna.trials t WHERE t.trial_id = trial FOR UPDATE;
    IF is_awaited THEN
        PERFORM FROM peft_pareto.studies s WHERE s.study_id = told.study_id FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO held FROM peft_pareto.leases l WHERE l.trial_id = trial FOR NO KEY UPDATE;
    IF held.worker = peft_pareto.worker() AND held.outcome = how AND held.reason IS NOT DISTINCT FROM why AND told.state::text = state_then
       AND scores IS NOT DISTINCT FROM (SELECT array_agg(v.value ORDER BY v.objective) FROM optuna.trial_values v
                                        WHERE v.trial_id = trial) THEN
        RETURN;
    END IF;
    SELECT count(*) INTO objectives FROM optuna.study_directions d WHERE d.study_id = told.study_id;
    IF state_then = 'COMPLETE' AND scores IS NULL OR cardinality(scores) <> objectives THEN
        PERFORM peft_pareto.refuse_value(format('trial %s was told %s values, its study has %s objectives',
                                                trial, coalesce(cardinality(scores), 0), objectives));
    END IF;
    UPDATE peft_pareto.leases l
        SET outcome = how, reason = why, own_cause = own, settled_at = clock_timestamp() WHERE l.trial_id = trial;
    IF NOT FOUND THEN
        PERFORM peft_pareto.refuse(trial, 'nobody holds a lease on it');
    END IF;
    UPDATE optuna.trials t SET state = state_then::optuna.trialstate, datetime_complete = timezone('UTC', clock_timestamp())
        WHERE t.trial_id = trial;
    INSERT INTO optuna.trial_values (trial_id, objective, value, value_type)
        SELECT trial, given.place - 1, given.value, 'FINITE' FROM unnest(scores) WITH ORDINALITY AS given (value, place);
    IF is_awaited THEN
        PERFORM peft_pareto.outdo(told.study_id);
    END IF;
END
$$;

-- What a trial that was enqueued without a candidate turned out to be; it ends at once where that is not worth running, as in
-- `start`. Gives the outcome then, else NULL. Locks Optuna's study, the trial, then the lease.
DROP FUNCTION IF EXISTS peft_pareto.describe(integer, jsonb, text[], double precision[], text[]);
CREATE OR REPLACE FUNCTION peft_pareto.describe(
    trial integer, refused_as text, why text, candidate jsonb, names text[], internal double precision[], kinds text[])
    RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
    study integer := (SELECT t.study_id FROM optuna.trials t WHERE t.trial_id = trial);
    objection text;
    known text;
BEGIN
    PERFORM FROM optuna.studies s WHERE s.study_id = study FOR UPDATE;
    PERFORM FROM optuna.trials t WHERE t.trial_id = trial FOR UPDATE;
    objection := peft_pareto.objection(trial);
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(trial, objection);
    END IF;
    IF NOT EXISTS (SELECT FROM peft_pareto.candidates c WHERE c.trial_id = trial) THEN
        known := peft_pareto.known_as(study, candidate);
    END IF;
    PERFORM peft_pareto.write_params(trial, names, internal, kinds);
    PERFORM peft_pareto.write_candidate(trial, study, candidate);
    IF known IS NOT NULL THEN
        refused_as := 'duplicate';
        why := known;
    END IF;
    IF refused_as IS NOT NULL THEN
        PERFORM peft_pareto.tell(trial, refused_as, 'FAIL', NULL, why, true);
    END IF;
    RETURN refused_as;
END
$$;

-- Takes the lease from a trial: it waits to be taken up again, or, at its last loss, fails. Its request is forgotten, since
-- the same asked again is to give a trial that is held. The caller has locked trial and lease.
CREATE OR REPLACE FUNCTION peft_pareto.lose(trial integer, counted boolean, why text, leaver text) RETURNS void
    LANGUAGE plpgsql AS
$$
BEGIN
    UPDATE peft_pareto.leases l
        SET losses = l.losses + 1, outcome = 'failed', own_cause = false, settled_at = clock_timestamp(), left_by = leaver, request = NULL,
            reason = format('its lease was lost %s times without a new rung, at last: %s', l.losses + 1, why)
        WHERE l.trial_id = trial AND counted AND l.losses + 1 >= peft_pareto.most_losses();
    IF FOUND THEN
        UPDATE optuna.trials t SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp()) WHERE t.trial_id = trial;
        RETURN;
    END IF;
    UPDATE peft_pareto.leases l
        SET worker = NULL, losses = l.losses + counted::integer, reason = why, left_by = leaver, stage = NULL, request = NULL
        WHERE l.trial_id = trial;
    UPDATE optuna.trials t SET state = 'WAITING' WHERE t.trial_id = trial;
END
$$;

-- The holder gives a trial back: without a reason it is released, with one it is a loss. True if that failed the trial.
-- Again by the same worker it does nothing. Locks the trial, then the lease.
CREATE OR REPLACE FUNCTION peft_pareto.leave(trial integer, why text) RETURNS boolean LANGUAGE plpgsql AS
$$
DECLARE
    held peft_pareto.leases;
    objection text;
BEGIN
    PERFORM FROM optuna.trials t WHERE t.trial_id = trial FOR UPDATE;
    SELECT * INTO held FROM peft_pareto.leases l WHERE l.trial_id = trial FOR NO KEY UPDATE;
    IF held.left_by = peft_pareto.worker() THEN
        RETURN held.outcome IS NOT DISTINCT FROM 'failed';
    END IF;
    objection := peft_pareto.objection(trial);
    IF objection IS NOT NULL THEN
        PERFORM peft_pareto.refuse(trial, objection);
    END IF;
    PERFORM peft_pareto.lose(trial, why IS NOT NULL, why, held.worker);
    RETURN why IS NOT NULL AND held.losses + 1 >= peft_pareto.most_losses();
END
$$;

-- Takes the study's trials from workers whose lease has run out by the server's clock; gives their numbers. Locks trials
-- and leases, but skips those that are locked (their holder is writing, or another worker is here too), so that it never
-- waits.
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
        PERFORM peft_pareto.lose(late.trial_id, true,
                                 format('worker %s was last heard of at %s', late.worker, late.heartbeat_at), NULL);
        RETURN NEXT late.number;
    END LOOP;
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
