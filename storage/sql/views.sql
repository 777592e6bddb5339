-- What a user may query, made in the schema of Optuna's tables so that psql finds it without a schema name: pareto_front,
-- trial_scores, rung_scores, loss_curves, hypervolume_history. Reading locks nothing; making views again waits for readers.

-- The scores at one number of steps, each the mean over the given trials, as columns; q and m are those of joint_reward.
CREATE OR REPLACE FUNCTION peft_pareto.mean_scores(trials integer[], at_steps integer, quality text, memorization text) RETURNS TABLE (
    q double precision, m double precision,
    fd double precision, fd_low double precision, fd_high double precision, kid double precision,
    kid_low double precision, kid_high double precision, loss_gap double precision, loss_gap_low double precision,
    loss_gap_high double precision, copy_excess double precision, copy_excess_low double precision,
    copy_excess_high double precision, copy_rate double precision, copy_rate_low double precision,
    copy_rate_high double precision, amd_train double precision, amd_train_low double precision,
    amd_train_high double precision, amd_twin double precision, amd_twin_low double precision,
    amd_twin_high double precision)
    LANGUAGE sql STABLE ROWS 1 AS
$$
    SELECT avg(value) FILTER (WHERE name = quality),
           avg(value) FILTER (WHERE name = memorization),
           avg(value) FILTER (WHERE name = 'fd'),
           avg(low) FILTER (WHERE name = 'fd'),
           avg(high) FILTER (WHERE name = 'fd'),
           avg(value) FILTER (WHERE name = 'kid'),
           avg(low) FILTER (WHERE name = 'kid'),
           avg(high) FILTER (WHERE name = 'kid'),
           avg(value) FILTER (WHERE name = 'loss_gap'),
           avg(low) FILTER (WHERE name = 'loss_gap'),
           avg(high) FILTER (WHERE name = 'loss_gap'),
           avg(value) FILTER (WHERE name = 'copy_excess'),
           avg(low) FILTER (WHERE name = 'copy_excess'),
           avg(high) FILTER (WHERE name = 'copy_excess'),
           avg(value) FILTER (WHERE name = 'copy_rate'),
           avg(low) FILTER (WHERE name = 'copy_rate'),
           avg(high) FILTER (WHERE name = 'copy_rate'),
           avg(value) FILTER (WHERE name = 'amd_train'),
           avg(low) FILTER (WHERE name = 'amd_train'),
           avg(high) FILTER (WHERE name = 'amd_train'),
           avg(value) FILTER (WHERE name = 'amd_twin'),
           avg(low) FILTER (WHERE name = 'amd_twin'),
           avg(high) FILTER (WHERE name = 'amd_twin')
        FROM peft_pareto.scores WHERE trial_id = ANY (trials) AND steps = at_steps
$$;

-- The product: one row a point of the front, `trial` the first that reached it, scores and seconds means over its repeats.
-- The study's name comes from the table beside front_of, so that a query for one study looks for the front of that study only.
CREATE VIEW optuna.pareto_front AS
    SELECT o.study_name AS study, p.trial, p.candidate, p.method, p.steps, p.trainable, p.trainable_share,
           peft_pareto.joint_reward(x.q, x.m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign,
                                    y.m_sign) AS joint_reward,
           p.seconds,
           x.fd, x.fd_low, x.fd_high, x.kid, x.kid_low, x.kid_high, x.loss_gap, x.loss_gap_low, x.loss_gap_high,
           x.copy_excess, x.copy_excess_low, x.copy_excess_high, x.copy_rate, x.copy_rate_low, x.copy_rate_high,
           x.amd_train, x.amd_train_low, x.amd_train_high, x.amd_twin, x.amd_twin_low, x.amd_twin_high,
           p.repeats
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
        CROSS JOIN LATERAL peft_pareto.front_of(s.study_id) AS f (hash)
        CROSS JOIN LATERAL (
            SELECT array_agg(t.trial_id) AS trials, min(t.number) AS trial, min(r.steps) AS steps, avg(r.seconds) AS seconds,
                   (array_agg(r.words ORDER BY t.number))[1] AS candidate, (array_agg(c.method ORDER BY t.number))[1] AS method,
                   max(c.trainable) AS trainable, max(c.trainable_share) AS trainable_share, count(*) AS repeats
                FROM peft_pareto.rungs r
                JOIN optuna.trials t ON t.trial_id = r.trial_id
                JOIN peft_pareto.candidates c ON c.trial_id = r.trial_id
                WHERE r.study_id = s.study_id AND r.hash = f.hash AND NOT r.again) AS p
        CROSS JOIN LATERAL peft_pareto.mean_scores(p.trials, p.steps, s.quality, s.memorization) AS x
        ORDER BY o.study_name, p.trial, p.steps;

-- All trials, failed and running ones too: `steps` their own, scores and seconds of the last rung that was evaluated
-- (`reached`), how many rungs were, and how they ended.
CREATE VIEW optuna.trial_scores AS
    SELECT o.study_name AS study, t.number AS trial, c.words AS candidate, c.method, c.steps, c.trainable, c.trainable_share,
           peft_pareto.joint_reward(x.q, x.m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign,
                                    y.m_sign) AS joint_reward,
           r.seconds,
           x.fd, x.fd_low, x.fd_high, x.kid, x.kid_low, x.kid_high, x.loss_gap, x.loss_gap_low, x.loss_gap_high,
           x.copy_excess, x.copy_excess_low, x.copy_excess_high, x.copy_rate, x.copy_rate_low, x.copy_rate_high,
           x.amd_train, x.amd_train_low, x.amd_train_high, x.amd_twin, x.amd_twin_low, x.amd_twin_high,
           t.state::text AS state, l.outcome, l.reason, c.baseline, coalesce(c.repeat, 0) AS repeat, r.reached,
           coalesce(r.rungs, 0) AS rungs, coalesce(r.on_front, false) AS on_front
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
        JOIN optuna.trials t ON t.study_id = s.study_id
        LEFT JOIN peft_pareto.candidates c ON c.trial_id = t.trial_id
        LEFT JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
        LEFT JOIN (
            SELECT own.study_name, r.trial_id, max(r.steps) AS reached, max(r.seconds) AS seconds, count(*) AS rungs,
                   bool_or(f.hash IS NOT NULL) AS on_front
                FROM peft_pareto.rungs r
                JOIN optuna.studies own ON own.study_id = r.study_id
                LEFT JOIN (SELECT n.study_name, found.hash FROM peft_pareto.studies e JOIN optuna.studies n ON n.study_id = e.study_id
                           CROSS JOIN LATERAL peft_pareto.front_of(e.study_id) AS found (hash)) AS f
                    ON f.study_name = own.study_name AND f.hash = r.hash
                GROUP BY own.study_name, r.trial_id) AS r ON r.study_name = o.study_name AND r.trial_id = t.trial_id
        CROSS JOIN LATERAL peft_pareto.mean_scores(ARRAY[t.trial_id], r.reached, s.quality, s.memorization) AS x
        ORDER BY o.study_name, t.number;

-- All evaluated rungs, one row each, with the state of their trial.
CREATE VIEW optuna.rung_scores AS
    SELECT o.study_name AS study, t.number AS trial, r.words AS candidate, c.method, r.steps, c.trainable, c.trainable_share,
           peft_pareto.joint_reward(x.q, x.m, s.reward_weight, s.q_base, s.q_real, s.m_base, y.m_yard, y.q_sign,
                                    y.m_sign) AS joint_reward,
           r.seconds,
           x.fd, x.fd_low, x.fd_high, x.kid, x.kid_low, x.kid_high, x.loss_gap, x.loss_gap_low, x.loss_gap_high,
           x.copy_excess, x.copy_excess_low, x.copy_excess_high, x.copy_rate, x.copy_rate_low, x.copy_rate_high,
           x.amd_train, x.amd_train_low, x.amd_train_high, x.amd_twin, x.amd_twin_low, x.amd_twin_high,
           t.state::text AS state, c.baseline, c.repeat, r.memory, r.feasible, f.hash IS NOT NULL AS on_front
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        JOIN peft_pareto.yardsticks y ON y.study_id = s.study_id
        JOIN peft_pareto.rungs r ON r.study_id = s.study_id
        JOIN optuna.trials t ON t.trial_id = r.trial_id
        JOIN peft_pareto.candidates c ON c.trial_id = r.trial_id
        LEFT JOIN (SELECT n.study_name, found.hash FROM peft_pareto.studies e JOIN optuna.studies n ON n.study_id = e.study_id
                   CROSS JOIN LATERAL peft_pareto.front_of(e.study_id) AS found (hash)) AS f
            ON f.study_name = o.study_name AND f.hash = r.hash
        CROSS JOIN LATERAL peft_pareto.mean_scores(ARRAY[r.trial_id], r.steps, s.quality, s.memorization) AS x
        ORDER BY o.study_name, t.number, r.steps;

-- The stable validation loss of every trial during its training.
CREATE VIEW optuna.loss_curves AS
    SELECT o.study_name AS study, t.number AS trial, c.step, c.train, c.twin
        FROM peft_pareto.loss_curves c
        JOIN optuna.trials t USING (trial_id)
        JOIN optuna.studies o USING (study_id)
        ORDER BY o.study_name, t.number, c.step;

-- The front's hypervolume as trials were finished, one row each, against their number and against busy seconds. NULL before
-- there is a yardstick, and where a worker ended between telling its trial and measuring.
CREATE VIEW optuna.hypervolume_history AS
    SELECT o.study_name AS study, t.number AS trial, row_number() OVER ended AS finished,
           coalesce(sum(r.seconds) OVER ended, 0) AS seconds, h.hypervolume
        FROM peft_pareto.studies s
        JOIN optuna.studies o ON o.study_id = s.study_id
        JOIN optuna.trials t ON t.study_id = s.study_id
        JOIN peft_pareto.leases l ON l.trial_id = t.trial_id
        LEFT JOIN LATERAL (SELECT max(e.seconds) AS seconds FROM peft_pareto.rungs e WHERE e.trial_id = t.trial_id) AS r ON true
        LEFT JOIN peft_pareto.hypervolumes h ON h.trial_id = t.trial_id
        WHERE t.state IN ('COMPLETE', 'PRUNED')
        WINDOW ended AS (PARTITION BY o.study_name ORDER BY l.settled_at, t.number)
        ORDER BY o.study_name, finished;
