-- Points as sql/front.sql keeps them, so that a front is found without reading all rungs.

CREATE TABLE peft_pareto.points (
    study_id integer NOT NULL REFERENCES peft_pareto.studies (study_id) ON DELETE CASCADE,
    hash text NOT NULL,
    runs integer NOT NULL,
    values double precision[] NOT NULL,
    outdone bigint,
    PRIMARY KEY (study_id, hash)
);
CREATE INDEX points_outdone ON peft_pareto.points (study_id, outdone);
COMMENT ON TABLE peft_pareto.points IS 'one row a point, an evaluated candidate: its rungs in all repeats';
COMMENT ON COLUMN peft_pareto.points.runs IS 'how many repeats of it are evaluated';
COMMENT ON COLUMN peft_pareto.points.values IS 'means over those of the rungs'' values';
COMMENT ON COLUMN peft_pareto.points.outdone IS 'the newest rung (recorded) when it was known that the point can never be on the front';

INSERT INTO peft_pareto.points (study_id, hash, runs, values, outdone)
    SELECT m.study_id, m.hash, min(m.runs), array_agg(m.mean ORDER BY m.place), CASE WHEN NOT bool_and(m.feasible) THEN 0 END
        FROM (SELECT r.study_id, r.hash, o.place, count(*) AS runs, avg(o.value) AS mean, bool_and(r.feasible) AS feasible
                  FROM peft_pareto.rungs r CROSS JOIN LATERAL unnest(r.values) WITH ORDINALITY AS o (value, place)
                  WHERE NOT r.again GROUP BY r.study_id, r.hash, o.place) AS m
        GROUP BY m.study_id, m.hash;
