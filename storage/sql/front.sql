-- What a user may query: pareto_front and trial_scores, made in the schema of Optuna's tables so that psql finds them
-- without a schema name, and what they are made of. Reading locks nothing; making the views again waits for readers.

DROP VIEW IF EXISTS optuna.pareto_front, optuna.trial_scores, optuna.loss_curves, peft_pareto.points, peft_pareto.yardsticks;

-- The trials of a study that no other dominates: COMPLETE, all objectives finite, equal points all stay. Each value is
-- replaced by its rank in its objective (1 = best, ties alike), which keeps dominance; who dominates has a smaller sum of
-- ranks, and points with a small sum dominate most, so that looking in this order ends early for nearly every point.
CREATE OR REPLACE FUNCTION peft_pareto.front_of(study integer) RETURNS SETOF integer LANGUAGE sql STABLE AS
$$
    WITH ranked AS (
        SELECT v.trial_id, v.objective, rank() OVER (PARTITION BY v.objective ORDER BY
                   CASE WHEN d.direction = 'MAXIMIZE' THEN -v.value ELSE v.value END)::integer AS place
            FROM optuna.trials t
            JOIN optuna.trial_values v ON v.trial_id = t.trial_id
            JOIN optuna.study_directions d ON d.study_id = t.study_id AND d.objective = v.objective
            WHERE t.study_id = study AND t.state = 'COMPLETE' AND v.value_type = 'FINITE' AND v.value <> 'NaN'
              AND NOT EXISTS (SELECT FROM optuna.trial_values w WHERE w.trial_id = t.trial_id
                              AND (w.value_type <> 'FINITE' OR w.value = 'NaN'))
    ), points AS MATERIALIZED (
        SELECT trial_id, sum(place) AS total, array_agg(place ORDER BY objective) AS places,
               min(place) FILTER (WHERE objective = 0) AS first, min(place) FILTER (WHERE objective = 1) AS second,
               min(place) FILTER (WHERE objective = 2) AS third
            FROM ranked GROUP BY trial_id
            HAVING count(*) = (SELECT count(*) FROM optuna.study_directions WHERE study_id = study)
            ORDER BY total
    )
    SELECT p.trial_id FROM points p WHERE NOT EXISTS (
        SELECT FROM points o WHERE o.total < p.total AND o.first <= p.first
            AND (p.second IS NULL OR o.second <= p.second) AND (p.third IS NULL OR o.third <= p.third)
            AND (cardinality(p.places) <= 3
                 OR NOT EXISTS (SELECT FROM unnest(o.places, p.places) AS pair (theirs, own) WHERE theirs > own)))
$$;

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

-- Per study: the yardstick's memorization (NULL until it is finished) and the signs that make lower better.
CREATE VIEW peft_pareto.yardsticks AS
    SELECT s.study_id, found.trial_id, found.m_yard,
           CASE WHEN s.directions ->> s.quality = 'maximize' THEN -1 ELSE 1 END AS q_sign,
           CASE WHEN s.directions ->> s.memorization = 'maximize' THEN -1 ELSE 1 END AS m_sign
        FROM peft_pareto.studies s
        LEFT JOIN LATERAL (
            SELECT c.trial_id, y.value AS m_yard
                FROM peft_pareto.candidates c JOIN optuna.trials t ON t.trial_id = c.trial_id
                LEFT JOIN peft_pareto.scores y ON y.trial_id = c.trial_id AND y.name = s.memorization
                WHERE c.study_id = s.study_id AND c.yardstick AND t.state = 'COMPLETE'
                ORDER BY t.number LIMIT 1) AS found ON true;

-- The reward of any q and m in a study, by its stored references.
CREATE OR REPLACE FUNCTION peft_pareto.joint_reward(study integer, q double precision, m double precision)
    RETURNS double precision LANGUAGE sql STABLE AS
$$
    SELECT peft_pareto.joint_reward(q, m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign, y.m_sign)
        FROM peft_pareto.studies s JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id WHERE s.study_id = study
$$;

-- Every trial of our studies with all that is known of it, one row a trial.
CREATE VIEW peft_pareto.points AS
    SELECT s.study_id, t.trial_id, o.study_name AS study, t.number AS trial, c.words AS candidate, c.method, c.steps,
           c.trainable, c.trainable_share,
           peft_pareto.joint_reward(x.q, x.m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign,
                                    y.m_sign) AS joint_reward,
           c.seconds, x.fd, x.fd_low, x.fd_high, x.kid, x.kid_low, x.kid_high,
           x.loss_gap, x.loss_gap_low, x.loss_gap_high, x.copy_excess, x.copy_excess_low, x.copy_excess_high,
           x.copy_rate, x.copy_rate_low, x.copy_rate_high, x.amd_train, x.amd_train_low, x.amd_train_high,
           x.amd_twin, x.amd_twin_low, x.amd_twin_high,
           t.state::text AS state, l.outcome, l.reason, c.baseline
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
        JOIN optuna.trials t ON t.study_id = s.study_id
        LEFT JOIN peft_pareto.candidates c ON c.trial_id = t.trial_id
        LEFT JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
        LEFT JOIN LATERAL (
            SELECT max(value) FILTER (WHERE name = s.quality) AS q,
                   max(value) FILTER (WHERE name = s.memorization) AS m,
                   max(value) FILTER (WHERE name = 'fd') AS fd,
                   max(low) FILTER (WHERE name = 'fd') AS fd_low,
                   max(high) FILTER (WHERE name = 'fd') AS fd_high,
                   max(value) FILTER (WHERE name = 'kid') AS kid,
                   max(low) FILTER (WHERE name = 'kid') AS kid_low,
                   max(high) FILTER (WHERE name = 'kid') AS kid_high,
                   max(value) FILTER (WHERE name = 'loss_gap') AS loss_gap,
                   max(low) FILTER (WHERE name = 'loss_gap') AS loss_gap_low,
                   max(high) FILTER (WHERE name = 'loss_gap') AS loss_gap_high,
                   max(value) FILTER (WHERE name = 'copy_excess') AS copy_excess,
                   max(low) FILTER (WHERE name = 'copy_excess') AS copy_excess_low,
                   max(high) FILTER (WHERE name = 'copy_excess') AS copy_excess_high,
                   max(value) FILTER (WHERE name = 'copy_rate') AS copy_rate,
                   max(low) FILTER (WHERE name = 'copy_rate') AS copy_rate_low,
                   max(high) FILTER (WHERE name = 'copy_rate') AS copy_rate_high,
                   max(value) FILTER (WHERE name = 'amd_train') AS amd_train,
                   max(low) FILTER (WHERE name = 'amd_train') AS amd_train_low,
                   max(high) FILTER (WHERE name = 'amd_train') AS amd_train_high,
                   max(value) FILTER (WHERE name = 'amd_twin') AS amd_twin,
                   max(low) FILTER (WHERE name = 'amd_twin') AS amd_twin_low,
                   max(high) FILTER (WHERE name = 'amd_twin') AS amd_twin_high
                FROM peft_pareto.scores WHERE trial_id = t.trial_id) AS x ON true;

-- The product: one row a point of the front. The study's name comes from the table beside front_of, so that a query for
-- one study looks for the front of that study only.
CREATE VIEW optuna.pareto_front AS
    SELECT o.study_name AS study, p.trial, p.candidate, p.method, p.steps, p.trainable, p.trainable_share, p.joint_reward, p.seconds,
           p.fd, p.fd_low, p.fd_high, p.kid, p.kid_low, p.kid_high, p.loss_gap, p.loss_gap_low, p.loss_gap_high,
           p.copy_excess, p.copy_excess_low, p.copy_excess_high, p.copy_rate, p.copy_rate_low, p.copy_rate_high,
           p.amd_train, p.amd_train_low, p.amd_train_high, p.amd_twin, p.amd_twin_low, p.amd_twin_high
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        CROSS JOIN LATERAL peft_pareto.front_of(s.study_id) AS f (trial_id)
        JOIN peft_pareto.points p ON p.trial_id = f.trial_id
        ORDER BY o.study_name, p.trial;

-- All trials, failed and running ones too, with the same columns and how they ended.
CREATE VIEW optuna.trial_scores AS
    WITH fronts AS MATERIALIZED (
        SELECT f.trial_id FROM peft_pareto.studies s CROSS JOIN LATERAL peft_pareto.front_of(s.study_id) AS f (trial_id))
    SELECT p.study, p.trial, p.candidate, p.method, p.steps, p.trainable, p.trainable_share, p.joint_reward, p.seconds,
           p.fd, p.fd_low, p.fd_high, p.kid, p.kid_low, p.kid_high, p.loss_gap, p.loss_gap_low, p.loss_gap_high,
           p.copy_excess, p.copy_excess_low, p.copy_excess_high, p.copy_rate, p.copy_rate_low, p.copy_rate_high,
           p.amd_train, p.amd_train_low, p.amd_train_high, p.amd_twin, p.amd_twin_low, p.amd_twin_high,
           p.state, p.trial AS number, p.outcome, p.reason, p.baseline, f.trial_id IS NOT NULL AS on_front
        FROM peft_pareto.points p LEFT JOIN fronts f ON f.trial_id = p.trial_id
        ORDER BY p.study, p.trial;

-- The stable validation loss of every trial during its training.
CREATE VIEW optuna.loss_curves AS
    SELECT o.study_name AS study, t.number AS trial, c.step, c.train, c.twin
        FROM peft_pareto.loss_curves c
        JOIN optuna.trials t USING (trial_id)
        JOIN optuna.studies o USING (study_id)
        ORDER BY o.study_name, t.number, c.step;
