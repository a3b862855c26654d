-- The public tables of regrow. What users read are the tables and views of 0001_views.sql and the
-- tables here whose comment does not say "internal".

CREATE FUNCTION regrow.now() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.clock_timestamp()';
COMMENT ON FUNCTION regrow.now() IS
    'The only clock by which leases and leadership are judged. Tests replace it.';

CREATE TABLE regrow.cluster (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    cluster_id uuid NOT NULL,
    epoch bigint NOT NULL,
    holder text NOT NULL,
    session text NOT NULL,
    backend_pid int NOT NULL,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE regrow.cluster IS 'One row: which cluster this is, and which control store leads it.';
COMMENT ON COLUMN regrow.cluster.one IS 'Always true.';
COMMENT ON COLUMN regrow.cluster.cluster_id IS 'Identity of the cluster, made with its database.';
COMMENT ON COLUMN regrow.cluster.epoch IS 'Counts changes of leadership; every write of a control store carries it.';
COMMENT ON COLUMN regrow.cluster.holder IS 'The leading process, as it names itself.';
COMMENT ON COLUMN regrow.cluster.session IS 'application_name of its connections, which a successor ends.';
COMMENT ON COLUMN regrow.cluster.backend_pid IS 'The server process that last served it.';
COMMENT ON COLUMN regrow.cluster.expires_at IS 'When another may take over.';
INSERT INTO regrow.cluster VALUES (true, gen_random_uuid(), 0, '', '', 0, '-infinity');

CREATE TABLE regrow.jobs (
    job int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_root bytea NOT NULL UNIQUE,
    driver_id bytea NOT NULL,
    part int NOT NULL,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'finished', 'failed')),
    entrypoint text NOT NULL,
    pid int NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz
);
CREATE INDEX jobs_running ON regrow.jobs (part) WHERE status = 'running';
COMMENT ON TABLE regrow.jobs IS 'One row per driver that joined.';
COMMENT ON COLUMN regrow.jobs.job IS 'Number of the job.';
COMMENT ON COLUMN regrow.jobs.job_root IS '16 bytes from which the ids of its tasks are derived.';
COMMENT ON COLUMN regrow.jobs.driver_id IS 'The driver, as the parent_id of what it submits.';
COMMENT ON COLUMN regrow.jobs.part IS 'Partition key of its tasks and objects, fixed at its start: yyyymmdd (UTC).';
COMMENT ON COLUMN regrow.jobs.status IS 'running, finished or failed.';
COMMENT ON COLUMN regrow.jobs.entrypoint IS 'The program, as its driver named it.';
COMMENT ON COLUMN regrow.jobs.pid IS 'Process id of the driver.';
COMMENT ON COLUMN regrow.jobs.started_at IS 'When it joined.';
COMMENT ON COLUMN regrow.jobs.finished_at IS 'When it ended.';

CREATE TABLE regrow.functions (
    function_id bytea PRIMARY KEY,
    name text NOT NULL,
    pickled bytea NOT NULL,
    fingerprint bytea,
    first_seen_at timestamptz NOT NULL
);
COMMENT ON TABLE regrow.functions IS 'Functions and classes, stored once, by content.';
COMMENT ON COLUMN regrow.functions.function_id IS '16 bytes: a hash of pickled.';
COMMENT ON COLUMN regrow.functions.name IS 'Its name in the program.';
COMMENT ON COLUMN regrow.functions.pickled IS 'The bytes cloudpickle made.';
COMMENT ON COLUMN regrow.functions.fingerprint IS 'Hash of its code object.';
COMMENT ON COLUMN regrow.functions.first_seen_at IS 'When a node logged it first.';

CREATE TABLE regrow.nodes (
    node_id int NOT NULL,
    incarnation int NOT NULL,
    alive boolean NOT NULL DEFAULT true,
    is_head boolean NOT NULL,
    last_batch bigint NOT NULL DEFAULT 0,
    lease_expires_at timestamptz NOT NULL,
    lease_ttl interval NOT NULL,
    registered_at timestamptz NOT NULL,
    died_at timestamptz,
    reason text,
    host text NOT NULL,
    port int NOT NULL,
    hostname text NOT NULL,
    socket_path text NOT NULL,
    total jsonb NOT NULL,
    labels jsonb NOT NULL,
    object_store_memory bigint NOT NULL,
    PRIMARY KEY (node_id, incarnation)
) WITH (fillfactor = 50);
CREATE SEQUENCE regrow.node_ids AS int;
COMMENT ON TABLE regrow.nodes IS 'One row per incarnation of a node: what a node is from its registration to its death.';
COMMENT ON COLUMN regrow.nodes.node_id IS 'Number of the node.';
COMMENT ON COLUMN regrow.nodes.incarnation IS 'Counts its lives, from 1.';
COMMENT ON COLUMN regrow.nodes.alive IS 'False once fenced: it can write nothing more.';
COMMENT ON COLUMN regrow.nodes.is_head IS 'Whether the cluster was started with it.';
COMMENT ON COLUMN regrow.nodes.last_batch IS 'Number of the last batch of its log that is in.';
COMMENT ON COLUMN regrow.nodes.lease_expires_at IS 'When it may be declared dead; each batch moves it on.';
COMMENT ON COLUMN regrow.nodes.lease_ttl IS 'For how long a batch renews its lease.';
COMMENT ON COLUMN regrow.nodes.registered_at IS 'When this incarnation joined.';
COMMENT ON COLUMN regrow.nodes.died_at IS 'When it was fenced or left.';
COMMENT ON COLUMN regrow.nodes.reason IS 'Why it is not alive.';
COMMENT ON COLUMN regrow.nodes.host IS 'Address at which other nodes reach it.';
COMMENT ON COLUMN regrow.nodes.port IS 'Port at which other nodes reach it.';
COMMENT ON COLUMN regrow.nodes.hostname IS 'Name of its machine.';
COMMENT ON COLUMN regrow.nodes.socket_path IS 'Unix socket for drivers on its machine.';
COMMENT ON COLUMN regrow.nodes.total IS 'Its resources, in ten-thousandths: {"CPU": 40000} is 4 CPUs.';
COMMENT ON COLUMN regrow.nodes.labels IS 'Its labels.';
COMMENT ON COLUMN regrow.nodes.object_store_memory IS 'Bytes of its arena.';

-- Wide columns first, then narrow: rows are many. Blobs are kept as they are (EXTERNAL): they are
-- pickles, and compressing them would cost more than the rest of the append.
CREATE TABLE regrow.task_log (
    submitted_at timestamptz NOT NULL,
    finished_at timestamptz,
    given_at timestamptz,
    duration_us bigint,
    result_size bigint,
    part int NOT NULL,
    job int NOT NULL,
    submitter int NOT NULL,
    holder int NOT NULL,
    holder_incarnation int NOT NULL,
    attempt int NOT NULL,
    max_retries int NOT NULL,
    num_returns int NOT NULL,
    actor_seq int,
    status smallint NOT NULL,
    kind smallint NOT NULL,
    task_id bytea NOT NULL,
    parent_id bytea NOT NULL,
    function_id bytea NOT NULL,
    name text NOT NULL,
    spec bytea NOT NULL,
    result bytea,
    result_digest bytea,
    result_refs bytea,
    deps bytea,
    nested bytea,
    actor_id bytea,
    resources jsonb,
    error text
) PARTITION BY LIST (part);
ALTER TABLE regrow.task_log
    ALTER spec SET STORAGE EXTERNAL, ALTER result SET STORAGE EXTERNAL,
    ALTER result_refs SET STORAGE EXTERNAL, ALTER deps SET STORAGE EXTERNAL,
    ALTER nested SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX task_log_id ON regrow.task_log (task_id, part);
CREATE INDEX task_log_unfinished ON regrow.task_log (holder, holder_incarnation) WHERE status = 0;
CREATE INDEX task_log_actor ON regrow.task_log (actor_id, actor_seq) WHERE actor_id IS NOT NULL;
COMMENT ON TABLE regrow.task_log IS 'Internal: the rows behind regrow.tasks, one per task, partitioned by job.';
COMMENT ON COLUMN regrow.task_log.submitted_at IS 'When the batch with its spec was appended.';
COMMENT ON COLUMN regrow.task_log.finished_at IS 'When the batch with its outcome was appended; null while unfinished.';
COMMENT ON COLUMN regrow.task_log.given_at IS 'When its last holder died and it was given to this one; else null.';
COMMENT ON COLUMN regrow.task_log.duration_us IS 'Microseconds of the run.';
COMMENT ON COLUMN regrow.task_log.result_size IS 'Bytes of its first return value where it is not kept in result.';
COMMENT ON COLUMN regrow.task_log.part IS 'Partition key: that of its job.';
COMMENT ON COLUMN regrow.task_log.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.task_log.submitter IS 'The node that waits for its result.';
COMMENT ON COLUMN regrow.task_log.holder IS 'The node that runs it, or ran it.';
COMMENT ON COLUMN regrow.task_log.holder_incarnation IS 'Which incarnation of that node.';
COMMENT ON COLUMN regrow.task_log.attempt IS 'Counts its attempts, from 1.';
COMMENT ON COLUMN regrow.task_log.max_retries IS 'How often it may run again; -1 is without limit.';
COMMENT ON COLUMN regrow.task_log.num_returns IS 'Number of its return values.';
COMMENT ON COLUMN regrow.task_log.actor_seq IS 'Of an actor''s call: its place in the order of execution, from 1.';
COMMENT ON COLUMN regrow.task_log.status IS '0 pending, 1 ok, 2 the program raised, 3 the system gave up, 4 cancelled.';
COMMENT ON COLUMN regrow.task_log.kind IS '0 task, 1 creation of an actor, 2 call of an actor.';
COMMENT ON COLUMN regrow.task_log.task_id IS '16 bytes.';
COMMENT ON COLUMN regrow.task_log.parent_id IS 'The task that submitted it; for a driver: regrow.jobs.driver_id.';
COMMENT ON COLUMN regrow.task_log.function_id IS 'What it runs (regrow.functions).';
COMMENT ON COLUMN regrow.task_log.name IS 'Name of the function, Class.__init__ or Class.method.';
COMMENT ON COLUMN regrow.task_log.spec IS 'The whole specification with its arguments, as the client made it.';
COMMENT ON COLUMN regrow.task_log.result IS 'First return value (or the error) if small, pickled.';
COMMENT ON COLUMN regrow.task_log.result_digest IS 'xxh3-128 of the first return value.';
COMMENT ON COLUMN regrow.task_log.result_refs IS 'Object ids inside the first return value, 20 bytes each.';
COMMENT ON COLUMN regrow.task_log.deps IS 'Objects it has as arguments, 20 bytes each.';
COMMENT ON COLUMN regrow.task_log.nested IS 'Objects referenced inside its arguments, 20 bytes each.';
COMMENT ON COLUMN regrow.task_log.actor_id IS 'Of an actor''s creation or call: the actor.';
COMMENT ON COLUMN regrow.task_log.resources IS 'What it asks for, in ten-thousandths; null is the default.';
COMMENT ON COLUMN regrow.task_log.error IS 'One word for why it failed.';

CREATE TABLE regrow.object_log (
    created_at timestamptz NOT NULL,
    size bigint NOT NULL,
    part int NOT NULL,
    job int NOT NULL,
    object_id bytea NOT NULL,
    task_id bytea NOT NULL,
    digest bytea,
    data bytea,
    refs bytea
) PARTITION BY LIST (part);
ALTER TABLE regrow.object_log
    ALTER data SET STORAGE EXTERNAL, ALTER refs SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX object_log_id ON regrow.object_log (object_id, part);
COMMENT ON TABLE regrow.object_log IS 'Internal: puts, and the second and further return values of tasks.';
COMMENT ON COLUMN regrow.object_log.created_at IS 'When its batch was appended.';
COMMENT ON COLUMN regrow.object_log.size IS 'Bytes.';
COMMENT ON COLUMN regrow.object_log.part IS 'Partition key: that of its job.';
COMMENT ON COLUMN regrow.object_log.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.object_log.object_id IS '20 bytes.';
COMMENT ON COLUMN regrow.object_log.task_id IS 'The task that returned or put it; for a driver: regrow.jobs.driver_id.';
COMMENT ON COLUMN regrow.object_log.digest IS 'xxh3-128 of its bytes.';
COMMENT ON COLUMN regrow.object_log.data IS 'Its bytes, if small.';
COMMENT ON COLUMN regrow.object_log.refs IS 'Object ids inside it, 20 bytes each.';

CREATE TABLE regrow.stored_objects (
    object_id bytea PRIMARY KEY,
    path text NOT NULL,
    stored_at timestamptz NOT NULL
);
COMMENT ON TABLE regrow.stored_objects IS 'Objects whose bytes are in storage.';
COMMENT ON COLUMN regrow.stored_objects.object_id IS '20 bytes.';
COMMENT ON COLUMN regrow.stored_objects.path IS 'Where, below the storage of the cluster.';
COMMENT ON COLUMN regrow.stored_objects.stored_at IS 'When that was logged.';

CREATE TABLE regrow.actors (
    actor_id bytea PRIMARY KEY,
    job int NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'alive', 'dead')),
    name text,
    namespace text NOT NULL DEFAULT '',
    function_id bytea,
    node_id int,
    incarnation int,
    error bytea,
    started_at timestamptz,
    died_at timestamptz
);
CREATE UNIQUE INDEX actors_name ON regrow.actors (namespace, name)
    WHERE name IS NOT NULL AND state <> 'dead';
CREATE INDEX actors_living ON regrow.actors (node_id, incarnation) WHERE state = 'alive';
CREATE INDEX actors_of_job ON regrow.actors (job) WHERE state <> 'dead';
COMMENT ON TABLE regrow.actors IS 'Actors that have a name or have started.';
COMMENT ON COLUMN regrow.actors.actor_id IS '16 bytes: the id of the task that creates it.';
COMMENT ON COLUMN regrow.actors.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.actors.state IS 'pending, alive or dead.';
COMMENT ON COLUMN regrow.actors.name IS 'The name under which get_actor finds it.';
COMMENT ON COLUMN regrow.actors.namespace IS 'The namespace of that name.';
COMMENT ON COLUMN regrow.actors.function_id IS 'Its class (regrow.functions).';
COMMENT ON COLUMN regrow.actors.node_id IS 'The node on which it lives, or lived last.';
COMMENT ON COLUMN regrow.actors.incarnation IS 'Which incarnation of that node.';
COMMENT ON COLUMN regrow.actors.error IS 'Why it is dead: msgpack of (code, message).';
COMMENT ON COLUMN regrow.actors.started_at IS 'When it came alive.';
COMMENT ON COLUMN regrow.actors.died_at IS 'When it died.';

CREATE TABLE regrow.rebuilds (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    task_id bytea NOT NULL,
    attempt int NOT NULL,
    node_id int NOT NULL,
    incarnation int NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    differs boolean
);
CREATE INDEX rebuilds_task ON regrow.rebuilds (task_id);
CREATE UNIQUE INDEX rebuilds_open ON regrow.rebuilds (task_id) WHERE finished_at IS NULL;
COMMENT ON TABLE regrow.rebuilds IS 'Finished tasks that were run again because their objects were lost.';
COMMENT ON COLUMN regrow.rebuilds.id IS 'Number of the rebuild.';
COMMENT ON COLUMN regrow.rebuilds.task_id IS 'The task.';
COMMENT ON COLUMN regrow.rebuilds.attempt IS 'Number of this run among all runs of the task.';
COMMENT ON COLUMN regrow.rebuilds.node_id IS 'The node that runs it.';
COMMENT ON COLUMN regrow.rebuilds.incarnation IS 'Which incarnation of that node.';
COMMENT ON COLUMN regrow.rebuilds.started_at IS 'When it was granted.';
COMMENT ON COLUMN regrow.rebuilds.finished_at IS 'When it ended, or its node or job did.';
COMMENT ON COLUMN regrow.rebuilds.differs IS 'Whether it made something else than was committed; null if it did not end by itself.';

CREATE TABLE regrow.events (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    subject bytea,
    node_id int,
    incarnation int,
    message text NOT NULL
);
COMMENT ON TABLE regrow.events IS 'What happened in the cluster that people may want to find.';
COMMENT ON COLUMN regrow.events.id IS 'Number of the event.';
COMMENT ON COLUMN regrow.events.at IS 'When it was logged.';
COMMENT ON COLUMN regrow.events.kind IS 'A word for the kind of event.';
COMMENT ON COLUMN regrow.events.subject IS 'The task, object or actor it is about.';
COMMENT ON COLUMN regrow.events.node_id IS 'The node that logged it; null for the control store.';
COMMENT ON COLUMN regrow.events.incarnation IS 'Which incarnation of that node.';
COMMENT ON COLUMN regrow.events.message IS 'One sentence.';

CREATE TABLE regrow.checkpoints (
    actor_id bytea NOT NULL,
    actor_seq int NOT NULL,
    path text NOT NULL,
    size bigint NOT NULL,
    digest bytea NOT NULL,
    refs bytea,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (actor_id, actor_seq)
);
COMMENT ON TABLE regrow.checkpoints IS 'Provisional: saved states of actors. Nothing writes it yet.';
COMMENT ON COLUMN regrow.checkpoints.actor_id IS 'The actor.';
COMMENT ON COLUMN regrow.checkpoints.actor_seq IS 'The last call that the state contains.';
COMMENT ON COLUMN regrow.checkpoints.path IS 'Where the state is, below the storage of the cluster.';
COMMENT ON COLUMN regrow.checkpoints.size IS 'Bytes.';
COMMENT ON COLUMN regrow.checkpoints.digest IS 'xxh3-128 of its bytes.';
COMMENT ON COLUMN regrow.checkpoints.refs IS 'Object ids that the state holds, 20 bytes each.';
COMMENT ON COLUMN regrow.checkpoints.created_at IS 'When it was committed.';

-- A partition is made on its own and then attached: that waits for nobody who reads or appends.
CREATE FUNCTION regrow.ensure_partition(key int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    child text;
BEGIN
    IF to_regclass('regrow.object_log_' || key) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('regrow.ensure_partition'));
    FOREACH parent IN ARRAY ARRAY['task_log', 'object_log'] LOOP
        child := parent || '_' || key;
        IF to_regclass('regrow.' || child) IS NULL THEN
            EXECUTE format('CREATE TABLE regrow.%I (LIKE regrow.%I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE regrow.%I ATTACH PARTITION regrow.%I FOR VALUES IN (%s)',
                           parent, child, key);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION regrow.ensure_partition(int) IS 'Internal: makes the partitions of a key if there are none.';
