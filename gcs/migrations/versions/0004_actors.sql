-- Actors that restart.

ALTER TABLE regrow.actors ADD COLUMN max_restarts int;
ALTER TABLE regrow.actors ADD COLUMN restarts int NOT NULL DEFAULT 0;
COMMENT ON COLUMN regrow.actors.max_restarts IS
    'How often it may restart; -1 without limit, null before it started.';
COMMENT ON COLUMN regrow.actors.restarts IS 'How often it restarted.';
COMMENT ON COLUMN regrow.actors.state IS 'pending, alive, restarting or dead.';
ALTER TABLE regrow.actors DROP CONSTRAINT actors_state_check;
ALTER TABLE regrow.actors ADD CONSTRAINT actors_state_check
    CHECK (state IN ('pending', 'alive', 'restarting', 'dead'));
CREATE INDEX actors_restarting ON regrow.actors (node_id, incarnation) WHERE state = 'restarting';
CREATE FUNCTION regrow.may_restart(a regrow.actors) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT a.state IN ('alive', 'restarting')
        AND (coalesce(a.max_restarts, 0) < 0 OR a.restarts < coalesce(a.max_restarts, 0))
        AND EXISTS (SELECT FROM regrow.jobs j WHERE j.job = a.job AND j.status = 'running')
$$;
COMMENT ON FUNCTION regrow.may_restart(regrow.actors) IS
    'Internal: whether an actor whose process is gone comes back.';

-- What a node logs of its actors.
--
-- Not alive and without an error means that only the process is gone: the actor restarts if it may.
-- Death is final, and nothing begins to live, or to restart, in a job that has ended.
CREATE FUNCTION regrow.note_actors(
    p_node int, p_incarnation int, p_now timestamptz,
    a_actor bytea[], a_job int[], a_alive boolean[], a_error bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_part int;
BEGIN
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
    FOR v_part IN SELECT DISTINCT part FROM regrow.jobs WHERE job = ANY (a_job) LOOP
        EXECUTE format($update$
            UPDATE regrow.actors a SET function_id = t.function_id, max_restarts = t.max_retries
            FROM regrow.task_log_%s t
            WHERE a.actor_id = ANY ($1) AND t.task_id = a.actor_id
                AND (a.function_id IS NULL OR a.max_restarts IS NULL)
            $update$, v_part)
        USING a_actor;
    END LOOP;
END $$;
COMMENT ON FUNCTION regrow.note_actors(int, int, timestamptz, bytea[], int[], boolean[], bytea[]) IS
    'Internal: the actors of an append.';

-- Nothing wrote the provisional table.
DROP TABLE regrow.checkpoints;
CREATE TABLE regrow.checkpoints (
    actor_id bytea NOT NULL,
    actor_seq int NOT NULL,
    object_id bytea NOT NULL,
    custom boolean NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (actor_id, actor_seq)
);
COMMENT ON TABLE regrow.checkpoints IS 'Saved states of actors: the two newest of each.';
COMMENT ON COLUMN regrow.checkpoints.actor_id IS 'The actor.';
COMMENT ON COLUMN regrow.checkpoints.actor_seq IS 'The last call that the state contains.';
COMMENT ON COLUMN regrow.checkpoints.object_id IS 'The object that is the state (regrow.objects).';
COMMENT ON COLUMN regrow.checkpoints.custom IS 'Whether save_checkpoint of the class made it.';
COMMENT ON COLUMN regrow.checkpoints.created_at IS 'When it was committed.';

-- The states of an append: new ones, and (without an object) ones that could not be read.
CREATE FUNCTION regrow.note_checkpoints(
    p_now timestamptz, c_actor bytea[], c_seq int[], c_object bytea[], c_custom boolean[]
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO regrow.checkpoints (actor_id, actor_seq, object_id, custom, created_at)
    SELECT c.actor_id, c.seq, c.object_id, c.custom, p_now
    FROM unnest(c_actor, c_seq, c_object, c_custom) AS c (actor_id, seq, object_id, custom)
    WHERE c.object_id IS NOT NULL
    ON CONFLICT DO NOTHING;
    DELETE FROM regrow.checkpoints k USING unnest(c_actor, c_seq, c_object) AS c (actor_id, seq, object_id)
    WHERE k.actor_id = c.actor_id AND k.actor_seq = c.seq AND c.object_id IS NULL;
    DELETE FROM regrow.checkpoints k WHERE k.actor_id = ANY (c_actor) AND k.actor_seq < (
        SELECT min(n.actor_seq) FROM (
            SELECT actor_seq FROM regrow.checkpoints WHERE actor_id = k.actor_id
            ORDER BY actor_seq DESC LIMIT 2) AS n);
$$;
COMMENT ON FUNCTION regrow.note_checkpoints(timestamptz, bytea[], int[], bytea[], boolean[]) IS
    'Internal: the checkpoints of an append.';

-- In regrow.append the statements about actors become one call, and checkpoints are new.
DO $do$
DECLARE
    v_old oid;
    v_signature text;
    v_comment text;
    v_before text;
    v_after text;
BEGIN
    SELECT p.oid, p.oid::regprocedure::text, pg_get_functiondef(p.oid), obj_description(p.oid)
    INTO STRICT v_old, v_signature, v_before, v_comment
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'regrow' AND p.proname = 'append';
    v_after := regexp_replace(
        v_before, 'IF a_actor IS NOT NULL THEN.*?END IF;',
        'IF a_actor IS NOT NULL THEN PERFORM regrow.note_actors('
        'p_node, p_incarnation, v_now, a_actor, a_job, a_alive, a_error); END IF;'
        ' IF c_actor IS NOT NULL THEN PERFORM regrow.note_checkpoints('
        'v_now, c_actor, c_seq, c_object, c_custom); END IF;');
    v_after := replace(
        v_after, 'r_differs boolean[])',
        'r_differs boolean[], c_actor bytea[], c_seq integer[], c_object bytea[], c_custom boolean[])');
    IF v_after NOT LIKE '%note_checkpoints%' OR v_after NOT LIKE '%c_custom boolean[])%' THEN
        RAISE EXCEPTION 'regrow.append is not as it was made';
    END IF;
    EXECUTE v_after;
    EXECUTE 'DROP FUNCTION ' || v_signature;
    EXECUTE format('COMMENT ON FUNCTION regrow.append IS %L', v_comment);
    REVOKE ALL ON FUNCTION regrow.append FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'regrow_append') THEN
        GRANT EXECUTE ON FUNCTION regrow.append TO regrow_append;
    END IF;
END $do$;
