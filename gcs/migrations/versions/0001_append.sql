-- The log of a node: regrow.append, one call per batch, all or nothing.
--
-- Records come as one array per column. A column whose values are all null comes as a null array; one
-- that cannot be null and has the same value in all rows may come as an array of that one value, so
-- the others are padded with null: coalesce(r.x, s_x[1]).

CREATE FUNCTION regrow.same_result(
    status_a smallint, digest_a bytea, data_a bytea, status_b smallint, digest_b bytea, data_b bytea
) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$$ SELECT status_a = status_b AND digest_a IS NOT DISTINCT FROM digest_b
       AND (digest_a IS NOT NULL OR data_a IS NOT DISTINCT FROM data_b) $$;
COMMENT ON FUNCTION regrow.same_result(smallint, bytea, bytea, smallint, bytea, bytea) IS
    'Internal: whether two outcomes agree, by digest, or by their bytes where they have none.';

-- Rows are looked up by id in the partitions of running jobs only, one by one and by name: a static
-- statement would open every partition there ever was, each time.
CREATE FUNCTION regrow.running_parts() RETURNS int[] LANGUAGE sql STABLE AS
$$ SELECT ARRAY(SELECT DISTINCT part FROM regrow.jobs WHERE status = 'running' ORDER BY part) $$;
COMMENT ON FUNCTION regrow.running_parts() IS
    'Internal: the partitions in which there may be unfinished tasks.';

-- Outcomes of tasks whose rows exist. A row that is finished already must say the same; one that was
-- cancelled keeps that; any other row that this incarnation does not hold is a conflict.
CREATE FUNCTION regrow.finish(
    p_node int, p_incarnation int, p_now timestamptz,
    o_task bytea[], o_attempt int[], o_status smallint[], o_actor_seq int[], o_error text[],
    o_result bytea[], o_size bigint[], o_digest bytea[], o_refs bytea[], o_duration bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_part int;
    v_rows bigint;
    v_updated bigint := 0;
    v_task bytea;
BEGIN
    FOREACH v_part IN ARRAY regrow.running_parts() LOOP
        -- CASE hides the condition from the planner, which may have statistics of a time when few
        -- tasks were unfinished and would go through them, or their index, once for each outcome.
        EXECUTE format($update$
            UPDATE regrow.task_log_%s t SET
                status = coalesce(o.status, $3[1]), attempt = coalesce(o.attempt, $2[1]),
                actor_seq = o.actor_seq, error = o.error, result = o.result, result_size = o.size,
                result_digest = o.digest, result_refs = o.refs, duration_us = o.duration,
                finished_at = $11
            FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS o (
                task_id, attempt, status, actor_seq, error, result, size, digest, refs, duration)
            WHERE t.task_id = o.task_id AND coalesce(o.status, $3[1]) <> 0
                AND CASE WHEN t.status = 0 THEN t.holder = $12 AND t.holder_incarnation = $13 END
            $update$, v_part)
        USING o_task, o_attempt, o_status, o_actor_seq, o_error, o_result, o_size, o_digest, o_refs,
            o_duration, p_now, p_node, p_incarnation;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        v_updated := v_updated + v_rows;
        EXIT WHEN v_updated = cardinality(o_task);
    END LOOP;
    IF v_updated = cardinality(o_task) THEN
        RETURN;
    END IF;
    SELECT o.task_id INTO v_task
    FROM unnest(o_task, o_status, o_result, o_digest) AS o (task_id, status, result, digest)
    LEFT JOIN regrow.task_log t ON t.task_id = o.task_id
    WHERE coalesce(o.status, o_status[1]) <> 0 AND t.status IS DISTINCT FROM 4
        AND regrow.same_result(t.status, t.result_digest, t.result,
                               coalesce(o.status, o_status[1]), o.digest, o.result) IS NOT TRUE
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the outcome of task % contradicts the log', encode(v_task, 'hex')
            USING ERRCODE = 'RG001';
    END IF;
END $$;
COMMENT ON FUNCTION regrow.finish IS 'Internal: the outcomes of an append.';

-- Objects that puts or the further returns of tasks made. What is there already must be the same.
CREATE FUNCTION regrow.check_objects(p_ids bytea[], p_digests bytea[], p_data bytea[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_object bytea;
BEGIN
    SELECT n.object_id INTO v_object
    FROM unnest(p_ids, p_digests, p_data) AS n (object_id, digest, data)
    JOIN regrow.object_log w ON w.object_id = n.object_id
    WHERE NOT regrow.same_result(1::smallint, w.digest, w.data, 1::smallint, n.digest, n.data)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'object % contradicts the log', encode(v_object, 'hex')
            USING ERRCODE = 'RG001';
    END IF;
END $$;
COMMENT ON FUNCTION regrow.check_objects IS 'Internal: rejects objects that contradict the log.';

CREATE FUNCTION regrow.append(
    p_node int, p_incarnation int, p_number bigint,
    -- distinct jobs of the batch, to which s_job and p_job are indices (from 1)
    p_jobs int[],
    -- functions
    f_id bytea[], f_name text[], f_pickled bytea[], f_fingerprint bytea[],
    -- specs, each with its outcome if it has one
    s_task bytea[], s_job int[], s_parent bytea[], s_function bytea[], s_name text[],
    s_kind smallint[], s_actor bytea[], s_deps bytea[], s_nested bytea[], s_spec bytea[],
    s_resources text[], s_submitter int[], s_holder int[], s_holder_incarnation int[],
    s_max_retries int[], s_num_returns int[],
    s_attempt int[], s_status smallint[], s_actor_seq int[], s_error text[], s_result bytea[],
    s_size bigint[], s_digest bytea[], s_refs bytea[], s_duration bigint[],
    -- new holders
    h_task bytea[], h_attempt int[], h_node int[], h_incarnation int[],
    -- outcomes of specs logged earlier
    o_task bytea[], o_attempt int[], o_status smallint[], o_actor_seq int[], o_error text[],
    o_result bytea[], o_size bigint[], o_digest bytea[], o_refs bytea[], o_duration bigint[],
    -- second and further returns of the outcomes above
    x_object bytea[], x_size bigint[], x_digest bytea[], x_data bytea[], x_refs bytea[],
    -- puts
    p_object bytea[], p_job int[], p_parent bytea[], p_size bigint[], p_digest bytea[],
    p_data bytea[], p_refs bytea[],
    -- the rest
    t_object bytea[], t_path text[],
    a_actor bytea[], a_job int[], a_alive boolean[], a_error bytea[],
    e_kind text[], e_subject bytea[], e_message text[],
    r_task bytea[], r_differs boolean[]
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, regrow, pg_temp
-- Plans are made once per connection, perhaps when a partition is still empty: they must look rows up
-- by their ids all the same.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_now timestamptz := regrow.now();
    v_alive boolean;
    v_last bigint;
    v_parts int[];
    v_ended int[];
    v_part int;
    v_rows bigint;
    v_count bigint;
    v_task bytea;
BEGIN
    -- This row lock is fence, order and idempotence in one.
    UPDATE regrow.nodes SET last_batch = p_number, lease_expires_at = v_now + lease_ttl
    WHERE node_id = p_node AND incarnation = p_incarnation AND alive AND last_batch = p_number - 1;
    IF NOT FOUND THEN
        SELECT alive, last_batch INTO v_alive, v_last FROM regrow.nodes
        WHERE node_id = p_node AND incarnation = p_incarnation;
        RETURN CASE
            -- Rows of nodes are never deleted: it was registered after the backup was made.
            WHEN NOT FOUND THEN 'behind'
            WHEN NOT v_alive THEN 'fenced'
            WHEN v_last >= p_number THEN 'applied'
            ELSE 'behind'
        END;
    END IF;

    IF f_id IS NOT NULL THEN
        INSERT INTO regrow.functions (function_id, name, pickled, fingerprint, first_seen_at)
        SELECT f.id, f.name, f.pickled, f.fingerprint, v_now
        FROM unnest(f_id, f_name, f_pickled, f_fingerprint) AS f (id, name, pickled, fingerprint)
        ON CONFLICT DO NOTHING;
    END IF;

    IF p_jobs IS NOT NULL THEN
        SELECT array_agg(j.part ORDER BY w.place), array_agg(j.job) FILTER (WHERE j.status <> 'running')
        INTO v_parts, v_ended
        FROM unnest(p_jobs) WITH ORDINALITY AS w (job, place) LEFT JOIN regrow.jobs j ON j.job = w.job;
        IF array_position(v_parts, NULL) IS NOT NULL THEN
            RAISE EXCEPTION 'job % is not in the log', p_jobs[array_position(v_parts, NULL)]
                USING ERRCODE = 'RG001';
        END IF;
    END IF;

    IF s_task IS NOT NULL THEN
        INSERT INTO regrow.task_log (
            part, job, task_id, parent_id, function_id, name, kind, actor_id, deps, nested, spec,
            resources, submitter, holder, holder_incarnation, max_retries, num_returns, attempt,
            status, actor_seq, error, result, result_size, result_digest, result_refs, duration_us,
            submitted_at, finished_at)
        SELECT
            v_parts[coalesce(s.job, 1)], p_jobs[coalesce(s.job, 1)], s.task,
            coalesce(s.parent, s_parent[1]), coalesce(s.function, s_function[1]),
            coalesce(s.name, s_name[1]), coalesce(s.kind, s_kind[1]), s.actor, s.deps, s.nested,
            s.spec, s.resources::jsonb, coalesce(s.submitter, s_submitter[1]),
            coalesce(s.holder, s_holder[1]), coalesce(s.holder_incarnation, s_holder_incarnation[1]),
            coalesce(s.max_retries, s_max_retries[1]), coalesce(s.num_returns, s_num_returns[1]),
            coalesce(s.attempt, s_attempt[1]), coalesce(s.status, s_status[1]), s.actor_seq, s.error,
            s.result, s.size, s.digest, s.refs, s.duration, v_now,
            CASE WHEN coalesce(s.status, s_status[1]) <> 0 THEN v_now END
        FROM unnest(
            s_task, s_job, s_parent, s_function, s_name, s_kind, s_actor, s_deps, s_nested, s_spec,
            s_resources, s_submitter, s_holder, s_holder_incarnation, s_max_retries, s_num_returns,
            s_attempt, s_status, s_actor_seq, s_error, s_result, s_size, s_digest, s_refs, s_duration
        ) AS s (
            task, job, parent, function, name, kind, actor, deps, nested, spec, resources, submitter,
            holder, holder_incarnation, max_retries, num_returns, attempt, status, actor_seq, error,
            result, size, digest, refs, duration)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        IF v_ended IS NOT NULL THEN
            UPDATE regrow.task_log SET status = 4, error = 'cancelled', finished_at = v_now
            WHERE part = ANY (v_parts) AND job = ANY (v_ended) AND status = 0;
        END IF;
        IF v_rows < cardinality(s_task) THEN
            -- Some were there already: their outcomes are as those of specs logged earlier. Of those
            -- that were inserted just now this is true anyway.
            PERFORM regrow.finish(
                p_node, p_incarnation, v_now, s_task, s_attempt, s_status, s_actor_seq, s_error,
                s_result, s_size, s_digest, s_refs, s_duration);
        END IF;
    END IF;

    IF h_task IS NOT NULL THEN
        v_count := 0;
        FOREACH v_part IN ARRAY regrow.running_parts() LOOP
            EXECUTE format($update$
                UPDATE regrow.task_log_%s t SET holder = h.node,
                    holder_incarnation = h.incarnation, attempt = h.attempt, given_at = NULL
                FROM unnest($1, $2, $3, $4) AS h (task_id, attempt, node, incarnation)
                WHERE t.task_id = h.task_id
                    AND CASE WHEN t.status = 0 THEN t.holder = $5 AND t.holder_incarnation = $6 END
                $update$, v_part)
            USING h_task, h_attempt, h_node, h_incarnation, p_node, p_incarnation;
            GET DIAGNOSTICS v_rows = ROW_COUNT;
            v_count := v_count + v_rows;
            EXIT WHEN v_count = cardinality(h_task);
        END LOOP;
        IF v_count < cardinality(h_task) THEN
            SELECT h.task_id INTO v_task
            FROM unnest(h_task, h_attempt, h_node, h_incarnation)
                AS h (task_id, attempt, node, incarnation)
            LEFT JOIN regrow.task_log t ON t.task_id = h.task_id
            WHERE t.status IS DISTINCT FROM 4 AND (
                t.status = 0 AND t.attempt = h.attempt AND t.holder = h.node
                AND t.holder_incarnation = h.incarnation) IS NOT TRUE
            LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'task % is not held by node % any more', encode(v_task, 'hex'), p_node
                    USING ERRCODE = 'RG001';
            END IF;
        END IF;
    END IF;

    IF o_task IS NOT NULL THEN
        PERFORM regrow.finish(
            p_node, p_incarnation, v_now, o_task, o_attempt, o_status, o_actor_seq, o_error, o_result,
            o_size, o_digest, o_refs, o_duration);
    END IF;

    IF x_object IS NOT NULL THEN
        v_count := 0;
        FOREACH v_part IN ARRAY regrow.running_parts() || v_parts LOOP
            EXECUTE format($insert$
                INSERT INTO regrow.object_log_%1$s (
                    part, job, object_id, task_id, size, digest, data, refs, created_at)
                SELECT t.part, t.job, x.object_id, t.task_id, x.size, x.digest, x.data, x.refs, $6
                FROM unnest($1, $2, $3, $4, $5) AS x (object_id, size, digest, data, refs)
                JOIN regrow.task_log_%1$s t ON t.task_id = substr(x.object_id, 1, 16)
                WHERE CASE WHEN t.status = 1 THEN true END
                ON CONFLICT DO NOTHING
                $insert$, v_part)
            USING x_object, x_size, x_digest, x_data, x_refs, v_now;
            GET DIAGNOSTICS v_rows = ROW_COUNT;
            v_count := v_count + v_rows;
            EXIT WHEN v_count = cardinality(x_object);
        END LOOP;
        IF v_count < cardinality(x_object) THEN
            PERFORM regrow.check_objects(x_object, x_digest, x_data);
        END IF;
    END IF;

    IF p_object IS NOT NULL THEN
        INSERT INTO regrow.object_log (
            part, job, object_id, task_id, size, digest, data, refs, created_at)
        SELECT v_parts[coalesce(p.job, 1)], p_jobs[coalesce(p.job, 1)], p.object_id,
            coalesce(p.parent, p_parent[1]), p.size, p.digest, p.data, p.refs, v_now
        FROM unnest(p_object, p_job, p_parent, p_size, p_digest, p_data, p_refs)
            AS p (object_id, job, parent, size, digest, data, refs)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        IF v_rows < cardinality(p_object) THEN
            PERFORM regrow.check_objects(p_object, p_digest, p_data);
        END IF;
    END IF;

    IF t_object IS NOT NULL THEN
        INSERT INTO regrow.stored_objects (object_id, path, stored_at)
        SELECT t.object_id, t.path, v_now FROM unnest(t_object, t_path) AS t (object_id, path)
        ON CONFLICT (object_id) DO UPDATE SET path = excluded.path, stored_at = excluded.stored_at;
    END IF;

    IF a_actor IS NOT NULL THEN
        -- Death is final, and nothing begins to live in a job that has ended.
        INSERT INTO regrow.actors AS old (
            actor_id, job, state, node_id, incarnation, error, started_at, died_at)
        SELECT a.actor_id, a.job, CASE WHEN v.lives THEN 'alive' ELSE 'dead' END,
            p_node, p_incarnation, a.error,
            CASE WHEN a.alive THEN v_now END, CASE WHEN NOT v.lives THEN v_now END
        FROM unnest(a_actor, a_job, a_alive, a_error) AS a (actor_id, job, alive, error)
        LEFT JOIN regrow.jobs j ON j.job = a.job
        CROSS JOIN LATERAL (SELECT a.alive AND j.status IS NOT DISTINCT FROM 'running') AS v (lives)
        ON CONFLICT (actor_id) DO UPDATE SET
            state = excluded.state, node_id = excluded.node_id, incarnation = excluded.incarnation,
            error = excluded.error,
            started_at = coalesce(excluded.started_at, old.started_at), died_at = excluded.died_at
        WHERE old.state <> 'dead';
        FOR v_part IN SELECT DISTINCT part FROM regrow.jobs WHERE job = ANY (a_job) LOOP
            EXECUTE format($update$
                UPDATE regrow.actors a SET function_id = t.function_id FROM regrow.task_log_%s t
                WHERE a.actor_id = ANY ($1) AND a.function_id IS NULL AND t.task_id = a.actor_id
                $update$, v_part)
            USING a_actor;
        END LOOP;
    END IF;

    IF e_kind IS NOT NULL THEN
        INSERT INTO regrow.events (at, kind, subject, node_id, incarnation, message)
        SELECT v_now, e.kind, e.subject, p_node, p_incarnation, e.message
        FROM unnest(e_kind, e_subject, e_message) WITH ORDINALITY
            AS e (kind, subject, message, place) ORDER BY e.place;
    END IF;

    IF r_task IS NOT NULL THEN
        -- One by one: a join planned while the table was small would go through all open rebuilds for
        -- each of them.
        FOR v_rows IN 1 .. cardinality(r_task) LOOP
            UPDATE regrow.rebuilds b SET finished_at = v_now, differs = r_differs[v_rows]
            WHERE b.task_id = r_task[v_rows] AND b.finished_at IS NULL
                AND b.node_id = p_node AND b.incarnation = p_incarnation;
        END LOOP;
    END IF;
    -- A large batch on a busy machine may take as long as a lease: its node is alive all the same. Who
    -- wants to fence it waits for our row lock and then sees this.
    IF regrow.now() > v_now + interval '0.5 s' THEN
        UPDATE regrow.nodes SET lease_expires_at = regrow.now() + lease_ttl
        WHERE node_id = p_node AND incarnation = p_incarnation;
    END IF;
    RETURN 'applied';
END $$;
COMMENT ON FUNCTION regrow.append IS
    'Appends one batch of a node''s log. Answers applied, fenced or behind; a batch that contradicts the log raises RG001 and writes nothing.';
REVOKE EXECUTE ON FUNCTION regrow.append FROM PUBLIC;
