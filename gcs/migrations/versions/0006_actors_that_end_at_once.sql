-- An actor that was created and whose process is gone, both in one append.

CREATE OR REPLACE FUNCTION regrow.may_restart(a regrow.actors) RETURNS boolean LANGUAGE sql STABLE
AS $$
    SELECT a.state IN ('pending', 'alive', 'restarting')
        AND (coalesce(a.max_restarts, 0) < 0 OR a.restarts < coalesce(a.max_restarts, 0))
        AND EXISTS (SELECT FROM regrow.jobs j WHERE j.job = a.job AND j.status = 'running')
$$;

-- What a node logs of its actors.
--
-- Not alive and without an error means that only the process is gone: the actor restarts if it may,
-- which its creation says. Death is final, and nothing begins to live, or to restart, in a job that
-- has ended.
CREATE OR REPLACE FUNCTION regrow.note_actors(
    p_node int, p_incarnation int, p_now timestamptz,
    a_actor bytea[], a_job int[], a_alive boolean[], a_error bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_part int;
BEGIN
    FOR v_part IN SELECT DISTINCT part FROM regrow.jobs WHERE job = ANY (a_job) LOOP
        EXECUTE format($insert$
            INSERT INTO regrow.actors AS old (actor_id, job, state, function_id, max_restarts)
            SELECT t.task_id, a.job, 'pending', t.function_id, t.max_retries
            FROM unnest($1, $2) AS a (actor_id, job)
            JOIN regrow.task_log_%s t ON t.task_id = a.actor_id
            ON CONFLICT (actor_id) DO UPDATE SET
                function_id = coalesce(old.function_id, excluded.function_id),
                max_restarts = coalesce(old.max_restarts, excluded.max_restarts)
            WHERE old.function_id IS NULL OR old.max_restarts IS NULL
            $insert$, v_part)
        USING a_actor, a_job;
    END LOOP;
    INSERT INTO regrow.actors AS old (
        actor_id, job, state, node_id, incarnation, error, started_at, died_at)
    SELECT a.actor_id, a.job, CASE WHEN v.lives THEN 'alive' ELSE 'dead' END,
        p_node, p_incarnation, a.error,
        CASE WHEN a.alive THEN p_now END, CASE WHEN NOT v.lives THEN p_now END
    FROM unnest(a_actor, a_job, a_alive, a_error) AS a (actor_id, job, alive, error)
    LEFT JOIN regrow.jobs j ON j.job = a.job
    CROSS JOIN LATERAL (SELECT a.alive AND j.status IS NOT DISTINCT FROM 'running') AS v (lives)
    ON CONFLICT (actor_id) DO UPDATE SET
        state = CASE
            WHEN excluded.state = 'dead' AND excluded.error IS NULL AND regrow.may_restart(old)
            THEN 'restarting' ELSE excluded.state END,
        restarts = old.restarts + (
            excluded.state = 'dead' AND excluded.error IS NULL AND regrow.may_restart(old))::int,
        node_id = excluded.node_id, incarnation = excluded.incarnation,
        error = excluded.error,
        started_at = coalesce(excluded.started_at, old.started_at), died_at = excluded.died_at
    WHERE old.state <> 'dead';
END $$;
