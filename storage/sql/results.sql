-- What results.py asks for in more than a line, as functions.

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
