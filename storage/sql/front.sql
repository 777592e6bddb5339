-- Which points of a study no other dominates, and the reward of a point. A point is an evaluated rung, by the hash of the
-- candidate that stops there; where that was run again on purpose, its repeats are one point, at their mean.

DROP VIEW IF EXISTS optuna.pareto_front, optuna.trial_scores, optuna.rung_scores, optuna.loss_curves,
    optuna.hypervolume_history, peft_pareto.yardsticks;

-- joint_reward's arithmetic. Its two ratios do not change when a score is negated, so only the two conditions look at the
-- direction: without room between base and real pictures, or between base and yardstick, there is no reward.
CREATE OR REPLACE FUNCTION peft_pareto.joint_reward(
    q double precision, m double precision, weight double precision, q_base double precision, q_real double precision,
    m_base double precision, m_yard double precision, q_sign integer, m_sign integer
) RETURNS double precision LANGUAGE sql IMMUTABLE AS
$$
    SELECT CASE WHEN q_sign * (q_base - q_real) > 0 AND m_sign * (m_yard - m_base) > 0
        THEN weight * (q_base - q) / (q_base - q_real) - (1 - weight) * (m - m_base) / (m_yard - m_base) END
$$;

-- Per study: the yardstick's memorization at its last rung (NULL until it is finished) and the signs that make lower better.
CREATE VIEW peft_pareto.yardsticks AS
    SELECT s.study_id, found.trial_id, found.m_yard,
           CASE WHEN s.directions ->> s.quality = 'maximize' THEN -1 ELSE 1 END AS q_sign,
           CASE WHEN s.directions ->> s.memorization = 'maximize' THEN -1 ELSE 1 END AS m_sign
        FROM peft_pareto.studies s
        LEFT JOIN LATERAL (
            SELECT c.trial_id, y.value AS m_yard
                FROM peft_pareto.candidates c JOIN optuna.trials t ON t.trial_id = c.trial_id
                LEFT JOIN peft_pareto.scores y ON y.trial_id = c.trial_id AND y.steps = c.steps AND y.name = s.memorization
                WHERE c.study_id = s.study_id AND c.yardstick AND t.state = 'COMPLETE'
                ORDER BY t.number LIMIT 1) AS found ON true;

-- The reward of any q and m in a study, by its stored references.
CREATE OR REPLACE FUNCTION peft_pareto.joint_reward(study integer, q double precision, m double precision)
    RETURNS double precision LANGUAGE sql STABLE AS
$$
    SELECT peft_pareto.joint_reward(q, m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign, y.m_sign)
        FROM peft_pareto.studies s JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id WHERE s.study_id = study
$$;

-- Of before.
DROP FUNCTION IF EXISTS peft_pareto.is_on_front(integer), peft_pareto.front_of_two(integer, boolean, integer[]),
    peft_pareto.front_of_many(integer, integer[]);

-- Points that none of those with so many runs dominates, for one or two objectives: with points in the order of the first, one
-- is dominated by a point before it that is no worse in the second, or by one beside it that is better there. Equal points all stay.
CREATE OR REPLACE FUNCTION peft_pareto.undominated_of_two(study integer, least_runs bigint, joint boolean, signs integer[])
    RETURNS SETOF text LANGUAGE sql STABLE ROWS 100 AS
$$
    WITH means AS MATERIALIZED (
        SELECT r.hash, count(*) >= least_runs AS dominates, avg(r.values[1]) AS first, avg(r.values[2]) AS second
            FROM peft_pareto.rungs r WHERE r.study_id = study AND NOT r.again GROUP BY r.hash HAVING bool_and(r.feasible)
    ), points AS (
        SELECT m.hash, m.dominates, -peft_pareto.joint_reward(m.first, m.second, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard,
                                                              y.q_sign, y.m_sign) AS first, 0 AS second
            FROM means m CROSS JOIN peft_pareto.studies s JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
            WHERE joint AND s.study_id = study
        UNION ALL
        SELECT hash, dominates, signs[1] * first, coalesce(signs[2] * second, 0) FROM means WHERE NOT joint
    ), neighbours AS (
        SELECT hash, second, min(second) FILTER (WHERE dominates) OVER (PARTITION BY first) AS beside,
               min(second) FILTER (WHERE dominates) OVER (ORDER BY first GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM points WHERE first IS NOT NULL
    )
    SELECT hash FROM neighbours WHERE (beside IS NULL OR second <= beside) AND (before IS NULL OR second < before)
$$;

-- The same for more. Each value is replaced by its rank in its objective (1 = best, ties alike), which keeps dominance; who
-- dominates has a smaller sum of ranks, and points with a small sum dominate most, so that looking in this order ends early
-- for nearly every point.
CREATE OR REPLACE FUNCTION peft_pareto.undominated_of_many(study integer, least_runs bigint, signs integer[]) RETURNS SETOF text
    LANGUAGE sql STABLE ROWS 100 AS
$$
    WITH ranked AS (
        SELECT r.hash, o.place AS objective, count(*) >= least_runs AS dominates,
               rank() OVER (PARTITION BY o.place ORDER BY signs[o.place] * avg(o.value))::integer AS place
            FROM peft_pareto.rungs r CROSS JOIN LATERAL unnest(r.values) WITH ORDINALITY AS o (value, place)
            WHERE r.study_id = study AND NOT r.again GROUP BY r.hash, o.place HAVING bool_and(r.feasible)
    ), points AS MATERIALIZED (
        SELECT hash, bool_and(dominates) AS dominates, sum(place) AS total, array_agg(place ORDER BY objective) AS places,
               min(place) FILTER (WHERE objective = 1) AS first, min(place) FILTER (WHERE objective = 2) AS second,
               min(place) FILTER (WHERE objective = 3) AS third
            FROM ranked GROUP BY hash ORDER BY total
    )
    SELECT p.hash FROM points p WHERE NOT EXISTS (
        SELECT FROM points o WHERE o.dominates AND o.total < p.total AND o.first <= p.first AND o.second <= p.second AND o.third <= p.third
            AND (cardinality(p.places) <= 3
                 OR NOT EXISTS (SELECT FROM unnest(o.places, p.places) AS pair (theirs, own) WHERE theirs > own)))
$$;

-- Hashes of the study's points that none of those with so many runs dominates. Infeasible points are left out; rungs of trials
-- in any state are in, since an evaluated rung stands whatever becomes of its trial. A joint_reward study has one objective, the
-- reward of the mean q and m, and no such points until its yardstick is finished. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.undominated(study integer, least_runs bigint) RETURNS SETOF text
    LANGUAGE plpgsql STABLE ROWS 100 AS
$$
DECLARE
    joint boolean;
    signs integer[];
BEGIN
    SELECT s.objectives = '["joint_reward"]', array_agg(CASE d.direction WHEN 'MAXIMIZE' THEN -1 ELSE 1 END ORDER BY d.objective)
        INTO joint, signs
        FROM peft_pareto.studies s JOIN optuna.study_directions d ON d.study_id = s.study_id
        WHERE s.study_id = study GROUP BY s.study_id;
    IF joint OR cardinality(signs) <= 2 THEN
        RETURN QUERY SELECT * FROM peft_pareto.undominated_of_two(study, least_runs, joint, signs);
    ELSE
        RETURN QUERY SELECT * FROM peft_pareto.undominated_of_many(study, least_runs, signs);
    END IF;
END
$$;

-- The study's front: points that no other dominates.
CREATE OR REPLACE FUNCTION peft_pareto.front_of(study integer) RETURNS SETOF text LANGUAGE sql STABLE ROWS 100 AS
$$ SELECT * FROM peft_pareto.undominated(study, 1) $$;

-- Points that are on the study's front, or may come to be without being run again: all but those that a point dominates of
-- which the mean is final, since it has all runs of --repeats. All that were evaluated where a joint reward is not defined yet.
CREATE OR REPLACE FUNCTION peft_pareto.contenders(study integer) RETURNS SETOF text LANGUAGE plpgsql STABLE ROWS 100 AS
$$
BEGIN
    IF (SELECT s.objectives = '["joint_reward"]' AND peft_pareto.joint_reward(study, 0, 0) IS NULL
            FROM peft_pareto.studies s WHERE s.study_id = study) THEN
        RETURN QUERY SELECT DISTINCT r.hash FROM peft_pareto.rungs r WHERE r.study_id = study;
    ELSE
        RETURN QUERY SELECT * FROM peft_pareto.undominated(
            study, (SELECT coalesce((s.settings #>> '{binding,repeats}')::bigint, 1) FROM peft_pareto.studies s WHERE s.study_id = study));
    END IF;
END
$$;
