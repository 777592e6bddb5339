-- What results.py asks for in more than a line, as functions.

-- The study's row, made once: what stands there then, and whether this call made it; nothing if trials were started in the study
-- before it was ours. Locks Optuna's study, so that none starts meanwhile.
CREATE OR REPLACE FUNCTION peft_pareto.register(given jsonb) RETURNS TABLE (settings jsonb, created boolean) LANGUAGE plpgsql AS
$$
#variable_conflict use_column
DECLARE
    study integer := given ->> 'study_id';
BEGIN
    PERFORM FROM optuna.studies o WHERE o.study_id = study FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM peft_pareto.refuse_value(format('study %s was deleted meanwhile, by a launch of that name for other objectives: launch again', study));
    END IF;
    RETURN QUERY SELECT s.settings, false FROM peft_pareto.studies s WHERE s.study_id = study;
    IF FOUND OR EXISTS (SELECT FROM optuna.trials t WHERE t.study_id = study AND t.state <> 'WAITING') THEN
        RETURN;
    END IF;
    RETURN QUERY
        INSERT INTO peft_pareto.studies
                (study_id, trials, lease_seconds, settings, objectives, directions, reward_weight, quality, memorization, queue)
            SELECT study_id, trials, lease_seconds, settings, objectives, directions, reward_weight, quality, memorization, queue
                FROM jsonb_populate_record(NULL::peft_pareto.studies, given)
            RETURNING settings, true;
END
$$;

-- What a launch changes of a study that is there. While trials run, raises PP006 where they do with other code than the launch's: their scores would be
-- taken for its own; and refuses fewer trials than the study has.
-- Locks the study's row, as all that start trials do.
CREATE OR REPLACE FUNCTION peft_pareto.relaunch(study integer, asked integer, given jsonb) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    PERFORM FROM peft_pareto.studies s WHERE s.study_id = study FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM optuna.trials t WHERE t.study_id = study AND t.state = 'RUNNING') THEN
        PERFORM peft_pareto.demand_version(study, given #>> '{free,code}', NULL);
        IF EXISTS (SELECT FROM peft_pareto.studies s WHERE s.study_id = study AND s.trials > asked) THEN
            PERFORM peft_pareto.refuse_value(format('trials=%s: the study runs now for more, and would be cut down', asked));
        END IF;
    END IF;
    UPDATE peft_pareto.studies s SET trials = asked, settings = given WHERE s.study_id = study;
END
$$;

-- Deletes Optuna's study if it is not ours and has no trial, not even a waiting one; else it stays. Locks it as `register` and all that start
-- trials do, and in the way of whoever enqueues one.
CREATE OR REPLACE FUNCTION peft_pareto.discard(study integer) RETURNS void LANGUAGE plpgsql AS
$$
BEGIN
    PERFORM FROM optuna.studies o WHERE o.study_id = study FOR UPDATE;
    IF EXISTS (SELECT FROM peft_pareto.studies s WHERE s.study_id = study) OR EXISTS (SELECT FROM optuna.trials t WHERE t.study_id = study) THEN
        RETURN;
    END IF;
    DELETE FROM optuna.study_directions d WHERE d.study_id = study;
    DELETE FROM optuna.study_user_attributes a WHERE a.study_id = study;
    DELETE FROM optuna.study_system_attributes a WHERE a.study_id = study;
    DELETE FROM optuna.studies o WHERE o.study_id = study;
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

-- Appends to the study's queue what it does not hold yet. Locks the study's row.
CREATE OR REPLACE FUNCTION peft_pareto.append_to_queue(study integer, entries jsonb) RETURNS jsonb LANGUAGE sql AS
$$
    UPDATE peft_pareto.studies s
        SET queue = s.queue || coalesce((
            SELECT jsonb_agg(entry ORDER BY place) FROM jsonb_array_elements(entries) WITH ORDINALITY AS given (entry, place)
            WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(s.queue) AS held (entry) WHERE held.entry = given.entry)), '[]')
        WHERE s.study_id = study RETURNING s.queue
$$;
