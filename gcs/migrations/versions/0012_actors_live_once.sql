-- A driver that goes from one node to another may have an actor created by both, when the first one's
-- log was late: the creation ends with the same outcome twice, which is no contradiction, but where the
-- actor lives is. The second node is rejected, and forgets what it made.

DO $do$
DECLARE
    v_row record;
    v_after text;
BEGIN
    SELECT p.oid, pg_get_functiondef(p.oid) AS before INTO STRICT v_row
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'regrow' AND p.proname = 'note_actors';
    v_after := replace(v_row.before, E'v_part int;\nBEGIN\n', E'v_part int;\n    v_actor bytea;\nBEGIN\n' || $text$
    SELECT a.actor_id INTO v_actor
    FROM unnest(a_actor, a_alive) AS a (actor_id, alive)
    JOIN regrow.actors o ON o.actor_id = a.actor_id
    JOIN regrow.nodes n ON n.node_id = o.node_id AND n.incarnation = o.incarnation
    WHERE a.alive AND o.state = 'alive' AND n.alive
        AND (o.node_id, o.incarnation) <> (p_node, p_incarnation)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'actor % lives on another node', encode(v_actor, 'hex')
            USING ERRCODE = 'RG001';
    END IF;
$text$);
    IF v_after NOT LIKE '%lives on another node%' THEN
        RAISE EXCEPTION 'regrow.note_actors is not as it was made';
    END IF;
    EXECUTE v_after;
END $do$;
