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
