-- A state is taken only from where the actor lives, and only after a call that the log has: the call
-- before it may have been cancelled with its job, and runs again when that is resumed.

CREATE FUNCTION regrow.note_checkpoints(
    p_node int, p_incarnation int, p_now timestamptz,
    c_actor bytea[], c_seq int[], c_object bytea[], c_custom boolean[]
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO regrow.checkpoints (actor_id, actor_seq, object_id, custom, created_at)
    SELECT c.actor_id, c.seq, c.object_id, c.custom, p_now
    FROM unnest(c_actor, c_seq, c_object, c_custom) AS c (actor_id, seq, object_id, custom)
    JOIN regrow.actors a ON a.actor_id = c.actor_id
    JOIN regrow.jobs j ON j.job = a.job
    WHERE c.object_id IS NOT NULL AND a.node_id = p_node AND a.incarnation = p_incarnation
        AND (c.seq = 0 OR EXISTS (
            SELECT FROM regrow.task_log t
            WHERE t.actor_id = c.actor_id AND t.actor_seq = c.seq AND t.status IN (1, 2)))
    ON CONFLICT DO NOTHING;
    DELETE FROM regrow.checkpoints k USING unnest(c_actor, c_seq, c_object) AS c (actor_id, seq, object_id)
    WHERE k.actor_id = c.actor_id AND k.actor_seq = c.seq AND c.object_id IS NULL;
    DELETE FROM regrow.checkpoints k WHERE k.actor_id = ANY (c_actor) AND k.actor_seq < (
        SELECT min(n.actor_seq) FROM (
            SELECT actor_seq FROM regrow.checkpoints WHERE actor_id = k.actor_id
            ORDER BY actor_seq DESC LIMIT 2) AS n);
$$;
COMMENT ON FUNCTION
    regrow.note_checkpoints(int, int, timestamptz, bytea[], int[], bytea[], boolean[]) IS
    'Internal: the checkpoints of an append.';

DO $do$
DECLARE
    v_row record;
    v_after text;
BEGIN
    SELECT p.oid, pg_get_functiondef(p.oid) AS before INTO STRICT v_row
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'regrow' AND p.proname = 'append';
    v_after := replace(
        v_row.before, 'regrow.note_checkpoints(v_now,',
        'regrow.note_checkpoints(p_node, p_incarnation, v_now,');
    IF v_after NOT LIKE '%note_checkpoints(p_node%' THEN
        RAISE EXCEPTION 'regrow.append is not as it was made';
    END IF;
    EXECUTE v_after;
END $do$;
DROP FUNCTION regrow.note_checkpoints(timestamptz, bytea[], int[], bytea[], boolean[]);
