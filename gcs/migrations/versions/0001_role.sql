-- The role of a node's log: it may call regrow.append and nothing else. Where roles cannot be made,
-- nodes log as the user of the URL, and an event says so.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'regrow_append') THEN
        BEGIN
            CREATE ROLE regrow_append NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles are shared by databases, and another has just made it
        END;
    END IF;
    EXECUTE format('GRANT regrow_append TO %I', current_user);
    GRANT USAGE ON SCHEMA regrow TO regrow_append;
    GRANT EXECUTE ON FUNCTION regrow.append TO regrow_append;
EXCEPTION WHEN insufficient_privilege THEN
    INSERT INTO regrow.events (at, kind, message) VALUES (regrow.now(), 'warning',
        'the role regrow_append could not be made or granted, so nodes write their log with all rights of the database user');
END $$;
