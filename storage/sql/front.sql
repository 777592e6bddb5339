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

-- Which points that are not outdone one with so many runs dominates, for one or two objectives: with points in the order of the
-- first, one is dominated by a point before it that is no worse in the second, or by one beside it that is better there. Equal
-- points do not dominate each other.
CREATE OR REPLACE FUNCTION peft_pareto.compared_in_two(study integer, least_runs integer, joint boolean, signs integer[])
    RETURNS TABLE (hash text, dominated boolean) LANGUAGE sql STABLE ROWS 100 AS
$$
    WITH means AS MATERIALIZED (
        SELECT p.hash, p.runs >= least_runs AS dominates, p.values[1] AS first, p.values[2] AS second
            FROM peft_pareto.points p WHERE p.study_id = study AND p.outdone IS NULL
    ), points AS (
        SELECT m.hash, m.dominates, -peft_pareto.joint_reward(m.first, m.second, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard,
                                                              y.q_sign, y.m_sign) AS first, 0 AS second
            FROM means m CROSS JOIN peft_pareto.studies s JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
            WHERE joint AND s.study_id = study
        UNION ALL
        SELECT m.hash, m.dominates, signs[1] * m.first, coalesce(signs[2] * m.second, 0) FROM means m WHERE NOT joint
    ), neighbours AS (
        SELECT n.hash, n.second, min(n.second) FILTER (WHERE n.dominates) OVER (PARTITION BY n.first) AS beside,
               min(n.second) FILTER (WHERE n.dominates) OVER (ORDER BY n.first GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM points n WHERE n.first IS NOT NULL
    )
    SELECT n.hash, coalesce(n.second > n.beside, false) OR coalesce(n.second >= n.before, false) FROM neighbours n
$$;

-- The same for more. Each value is replaced by its rank in its objective (1 = best, ties alike), which keeps dominance; who
-- dominates has a smaller sum of ranks, and points with a small sum dominate most, so that looking in this order ends early
-- for nearly every point.
CREATE OR REPLACE FUNCTION peft_pareto.compared_in_many(study integer, least_runs integer, signs integer[])
    RETURNS TABLE (hash text, dominated boolean) LANGUAGE sql STABLE ROWS 100 AS
$$
    WITH ranked AS (
        SELECT p.hash, p.runs >= least_runs AS dominates, o.place AS objective,
               rank() OVER (PARTITION BY o.place ORDER BY signs[o.place] * o.value)::integer AS place
            FROM peft_pareto.points p CROSS JOIN LATERAL unnest(p.values) WITH ORDINALITY AS o (value, place)
            WHERE p.study_id = study AND p.outdone IS NULL
    ), points AS MATERIALIZED (
        SELECT r.hash, r.dominates, sum(r.place) AS total, array_agg(r.place ORDER BY r.objective) AS places,
               min(r.place) FILTER (WHERE r.objective = 1) AS first, min(r.place) FILTER (WHERE r.objective = 2) AS second,
               min(r.place) FILTER (WHERE r.objective = 3) AS third
            FROM ranked r GROUP BY r.hash, r.dominates ORDER BY total
    )
    SELECT p.hash, EXISTS (
        SELECT FROM points o WHERE o.dominates AND o.total < p.total AND o.first <= p.first AND o.second <= p.second AND o.third <= p.third
            AND (cardinality(p.places) <= 3
                 OR NOT EXISTS (SELECT FROM unnest(o.places, p.places) AS pair (theirs, own) WHERE theirs > own))) FROM points p
$$;

-- The study's points that are not outdone, each with whether one that has so many runs dominates it. A joint_reward study has one
-- objective, the reward of the mean q and m, and no rows until its yardstick is finished. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.compared(study integer, least_runs integer) RETURNS TABLE (hash text, dominated boolean)
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
        RETURN QUERY SELECT * FROM peft_pareto.compared_in_two(study, least_runs, joint, signs);
    ELSE
        RETURN QUERY SELECT * FROM peft_pareto.compared_in_many(study, least_runs, signs);
    END IF;
END
$$;

-- Hashes of the study's points that no other dominates. Infeasible points are left out; rungs of trials in any state are in,
-- since an evaluated rung stands whatever becomes of its trial. Locks nothing.
CREATE OR REPLACE FUNCTION peft_pareto.front_of(study integer) RETURNS SETOF text LANGUAGE sql STABLE ROWS 100 AS
$$ SELECT c.hash FROM peft_pareto.compared(study, 1) c WHERE NOT c.dominated $$;

-- After so many runs a point's mean is final.
CREATE OR REPLACE FUNCTION peft_pareto.repeats(study integer) RETURNS integer LANGUAGE sql STABLE AS
$$ SELECT coalesce((s.settings #>> '{binding,repeats}')::integer, 1) FROM peft_pareto.studies s WHERE s.study_id = study $$;

-- Marks the points that are outdone: dominated by one of which the mean is final, since it has all runs of --repeats, and with no repeat on its
-- way to them, which might let them return. That never ends: no further one is begun (`in_the_way`), and a repeat of a longer training that comes by
-- counts for no point that is outdone (`record_rung`). So a front is looked for among few, however many trials there are. The caller has locked the
-- study's row.
CREATE OR REPLACE FUNCTION peft_pareto.outdo(study integer) RETURNS void LANGUAGE plpgsql AS
$$
DECLARE
    newest bigint := max(r.recorded) FROM peft_pareto.rungs r WHERE r.study_id = study;
    awaited text[] := array(
        SELECT r.hash
            FROM peft_pareto.candidates c
            JOIN optuna.trials t ON t.trial_id = c.trial_id
            JOIN peft_pareto.candidates o ON o.study_id = study AND o.root = c.root
            JOIN peft_pareto.rungs r ON r.trial_id = o.trial_id AND r.steps = ANY (c.rungs)
            WHERE c.study_id = study AND c.repeat > 0 AND t.study_id = study AND t.state IN ('RUNNING', 'WAITING')
            GROUP BY c.trial_id, r.hash HAVING NOT bool_or(o.repeat = c.repeat));
BEGIN
    UPDATE peft_pareto.points p SET outdone = newest
        FROM peft_pareto.compared(study, peft_pareto.repeats(study)) c
        WHERE c.dominated AND p.study_id = study AND p.hash = c.hash AND p.hash <> ALL (awaited);
END
$$;

-- A study's points as its rungs say, all (NULL) or one, and which are outdone: those that are infeasible, which never ends either, or as
-- above. The caller has locked the study's row.
CREATE OR REPLACE FUNCTION peft_pareto.learn_points(study integer, point text) RETURNS void LANGUAGE plpgsql AS
$$
DECLARE
    newest bigint := max(r.recorded) FROM peft_pareto.rungs r WHERE r.study_id = study;
BEGIN
    INSERT INTO peft_pareto.points (study_id, hash, runs, values, outdone)
        SELECT study, m.hash, min(m.runs), array_agg(m.mean ORDER BY m.place), CASE WHEN NOT bool_and(m.feasible) THEN newest END
            FROM (SELECT r.hash, o.place, count(*) AS runs, avg(o.value) AS mean, bool_and(r.feasible) AS feasible
                      FROM peft_pareto.rungs r CROSS JOIN LATERAL unnest(r.values) WITH ORDINALITY AS o (value, place)
                      WHERE r.study_id = study AND (point IS NULL OR r.hash = point) AND NOT r.again GROUP BY r.hash, o.place) AS m
            GROUP BY m.hash
        ON CONFLICT (study_id, hash) DO UPDATE SET runs = excluded.runs, values = excluded.values, outdone = excluded.outdone;
    PERFORM peft_pareto.outdo(study);
END
$$;

-- Follows a rung that is written. Where it changes a mean that was final (another value for a rung, more runs than --repeats says),
-- all of the study's points are taken anew: that one may have dominated others for good.
CREATE OR REPLACE FUNCTION peft_pareto.follow_rung() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    was_final boolean;
BEGIN
    IF TG_OP = 'UPDATE' AND (OLD.hash, OLD.values, OLD.feasible) IS NOT DISTINCT FROM (NEW.hash, NEW.values, NEW.feasible) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' AND NEW.again THEN
        PERFORM peft_pareto.outdo(NEW.study_id);
        RETURN NULL;
    END IF;
    was_final := TG_OP = 'UPDATE' OR EXISTS (
        SELECT FROM peft_pareto.points p
            WHERE p.study_id = NEW.study_id AND p.hash = NEW.hash AND p.runs >= peft_pareto.repeats(NEW.study_id));
    PERFORM peft_pareto.learn_points(NEW.study_id, CASE WHEN NOT was_final THEN NEW.hash END);
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER follow AFTER INSERT OR UPDATE ON peft_pareto.rungs
    FOR EACH ROW EXECUTE FUNCTION peft_pareto.follow_rung();
