BEGIN TRANSACTION;
CREATE TABLE application_versions (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL UNIQUE,
    version_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL);
INSERT INTO "application_versions" VALUES('8102fa76-9f8e-40db-9081-f32ce5c9c410','luma-poll-1',1795648842000,1795648842000,'luma-poll');
CREATE TABLE dbos_migrations (version INTEGER NOT NULL PRIMARY KEY);
INSERT INTO "dbos_migrations" VALUES(125);
CREATE TABLE luma_submissions (
	"key" TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	queue TEXT NOT NULL, 
	permit TEXT NOT NULL, 
	generation_id TEXT, 
	accepted_at FLOAT, 
	unknown BOOLEAN NOT NULL, 
	PRIMARY KEY ("key", attempt)
);
INSERT INTO "luma_submissions" VALUES('ended',1,'luma','ce93f04819694e748e520be214ddf553','cd613e30-d8f1-4adf-91b7-584a2265b1f5',1.79564884550389599802e+09,0);
INSERT INTO "luma_submissions" VALUES('waits',1,'luma','badc58949b9942c888e73719beb045e2','78e51061-7311-48a3-82ce-6f447ed4d57b',1.79564884606062817574e+09,0);
CREATE TABLE luma_workers (
	executor_id TEXT NOT NULL, 
	queue TEXT NOT NULL, 
	beat INTEGER NOT NULL, 
	PRIMARY KEY (executor_id)
);
INSERT INTO "luma_workers" VALUES('worker-of-release-1','luma',16);
CREATE TABLE notifications (
    message_uuid TEXT NOT NULL DEFAULT (hex(randomblob(16))) PRIMARY KEY,
    destination_uuid TEXT NOT NULL,
    topic TEXT,
    message TEXT NOT NULL,
    created_at_epoch_ms INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000), "serialization" TEXT DEFAULT NULL, "consumed" BOOLEAN NOT NULL DEFAULT FALSE, consumed_by_function_id INTEGER,
    FOREIGN KEY (destination_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE "operation_outputs" (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    function_name TEXT NOT NULL DEFAULT '',
    output TEXT,
    error TEXT,
    child_workflow_id TEXT,
    started_at_epoch_ms INTEGER,
    completed_at_epoch_ms INTEGER,
    serialization TEXT,
    application_name TEXT DEFAULT NULL,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    PRIMARY KEY (workflow_uuid, function_id)
);
INSERT INTO "operation_outputs" VALUES('ended',1,'luma_poll.submit','{"id":"cd613e30-d8f1-4adf-91b7-584a2265b1f5","at":1795648845.503896}',NULL,NULL,1795648845340,1795648845536,'portable_json','luma-poll',1795648845000);
INSERT INTO "operation_outputs" VALUES('ended',2,'luma_poll.wait','{"id":"cd613e30-d8f1-4adf-91b7-584a2265b1f5","state":"completed","failure_code":null,"failure_reason":null}',NULL,NULL,1795648845578,1795648845710,'portable_json','luma-poll',1795648845000);
INSERT INTO "operation_outputs" VALUES('ended',3,'luma_poll.luma.callback',NULL,NULL,'ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5:callback',1795648845721,1795648845725,NULL,'luma-poll',1795648845000);
INSERT INTO "operation_outputs" VALUES('ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5:callback',1,'luma_poll.deliver','"ConnectError: All connection attempts failed"',NULL,NULL,1795648845735,1795648845740,'portable_json','luma-poll',1795648845000);
INSERT INTO "operation_outputs" VALUES('ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5:callback',2,'DBOS.sleep','1795648850.755399',NULL,NULL,1795648845754,1795648850755,'portable_json','luma-poll',1795648845000);
INSERT INTO "operation_outputs" VALUES('waits',1,'luma_poll.submit','{"id":"78e51061-7311-48a3-82ce-6f447ed4d57b","at":1795648846.0606282}',NULL,NULL,1795648846040,1795648846068,'portable_json','luma-poll',1795648846000);
CREATE TABLE queues (
    queue_id TEXT PRIMARY KEY DEFAULT (hex(randomblob(16))),
    name TEXT NOT NULL UNIQUE,
    concurrency INTEGER,
    worker_concurrency INTEGER,
    rate_limit_max INTEGER,
    rate_limit_period_sec REAL,
    priority_enabled BOOLEAN NOT NULL DEFAULT FALSE,
    partition_queue BOOLEAN NOT NULL DEFAULT FALSE,
    polling_interval_sec REAL NOT NULL DEFAULT 1.0,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL, "partition_concurrency" INTEGER DEFAULT NULL, "partition_worker_concurrency" INTEGER DEFAULT NULL, "partition_rate_limit_max" INTEGER DEFAULT NULL, "partition_rate_limit_period_sec" REAL DEFAULT NULL);
INSERT INTO "queues" VALUES('F4D6731E4125D0BC2FCF2773EEAE4D03','luma',1,NULL,NULL,NULL,1,0,0.2,1795648843000,1795648843937,'luma-poll',NULL,NULL,NULL,NULL);
INSERT INTO "queues" VALUES('52F635DB4E662BDB619E6958E4C011B2','luma.unlimited',NULL,NULL,NULL,NULL,1,0,0.2,1795648844000,1795648844034,'luma-poll',NULL,NULL,NULL,NULL);
CREATE TABLE streams (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    "offset" INTEGER NOT NULL, function_id INTEGER NOT NULL DEFAULT 0, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key, "offset"),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_events (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_events_history (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id, key),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid)
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_input (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    inputs TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_input" VALUES('ended','{"namedArgs":{},"positionalArgs":[{"prompt":"sandbox:duration=0.1"},{"max_attempts":1,"callback":"http://127.0.0.1:1/hook","timeout":60}]}',1795648845000);
INSERT INTO "workflow_input" VALUES('ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5:callback','{"namedArgs":{},"positionalArgs":["http://127.0.0.1:1/hook","ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5",{"type":"generation.completed","timestamp":"2026-11-25T23:20:45.721060+00:00","data":{"key":"ended","id":"cd613e30-d8f1-4adf-91b7-584a2265b1f5","state":"completed","failure_code":null,"failure_reason":null,"submitted":["cd613e30-d8f1-4adf-91b7-584a2265b1f5"]}}]}',1795648845000);
INSERT INTO "workflow_input" VALUES('waits','{"namedArgs":{},"positionalArgs":[{"prompt":"a fox"},{"max_attempts":2,"callback":null,"timeout":60}]}',1795648845000);
INSERT INTO "workflow_input" VALUES('queued','{"namedArgs":{},"positionalArgs":[{"prompt":"another fox"},{"max_attempts":1,"callback":null,"timeout":60}]}',1795648846000);
CREATE TABLE workflow_output (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    output TEXT,
    error TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_output" VALUES('ended','{"id":"cd613e30-d8f1-4adf-91b7-584a2265b1f5","state":"completed","failure_code":null,"failure_reason":null,"submitted":["cd613e30-d8f1-4adf-91b7-584a2265b1f5"]}',NULL,1795648845000);
CREATE TABLE workflow_schedules (
    schedule_id TEXT PRIMARY KEY,
    schedule_name TEXT NOT NULL UNIQUE,
    workflow_name TEXT NOT NULL,
    workflow_class_name TEXT,
    schedule TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'ACTIVE',
    context TEXT NOT NULL
, "last_fired_at" TEXT DEFAULT NULL, "automatic_backfill" BOOLEAN NOT NULL DEFAULT FALSE, "cron_timezone" TEXT DEFAULT NULL, "queue_name" TEXT DEFAULT NULL, "application_name" TEXT DEFAULT NULL);
CREATE TABLE workflow_status (
    workflow_uuid TEXT PRIMARY KEY,
    status TEXT,
    name TEXT,
    authenticated_user TEXT,
    assumed_role TEXT,
    authenticated_roles TEXT,
    request TEXT,
    output TEXT,
    error TEXT,
    executor_id TEXT,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    application_version TEXT,
    application_id TEXT,
    class_name TEXT DEFAULT NULL,
    config_name TEXT DEFAULT NULL,
    recovery_attempts INTEGER DEFAULT 0,
    queue_name TEXT,
    workflow_timeout_ms INTEGER,
    workflow_deadline_epoch_ms INTEGER,
    inputs TEXT,
    started_at_epoch_ms INTEGER,
    deduplication_id TEXT,
    priority INTEGER NOT NULL DEFAULT 0
, queue_partition_key TEXT, forked_from TEXT, "owner_xid" TEXT DEFAULT NULL, "parent_workflow_id" TEXT DEFAULT NULL, "serialization" TEXT DEFAULT NULL, "delay_until_epoch_ms" BIGINT DEFAULT NULL, "was_forked_from" BOOLEAN NOT NULL DEFAULT FALSE, "rate_limited" BOOLEAN NOT NULL DEFAULT FALSE, "completed_at" BIGINT, "attributes" TEXT, "schedule_name" TEXT, "debounce_deadline_epoch_ms" BIGINT DEFAULT NULL, "is_debounced" BOOLEAN NOT NULL DEFAULT FALSE, "application_name" TEXT DEFAULT NULL, "creator_xid" TEXT DEFAULT NULL);
INSERT INTO "workflow_status" VALUES('ended','SUCCESS','luma_poll.luma.generation',NULL,NULL,NULL,NULL,NULL,NULL,'worker-of-release-1',1795648845000,1795648845000,'luma-poll-1','',NULL,NULL,1,'luma',NULL,NULL,NULL,1795648845000,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795648845000,'null',NULL,NULL,0,'luma-poll','30409cca-24e0-4652-b374-93f602d29147');
INSERT INTO "workflow_status" VALUES('ended:completed:cd613e30-d8f1-4adf-91b7-584a2265b1f5:callback','PENDING','luma_poll.luma.callback',NULL,NULL,NULL,NULL,NULL,NULL,'worker-of-release-1',1795648845000,1795648845000,'luma-poll-1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'275c8410-2994-4b48-9d9d-1153656bd3ee','ended','portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'luma-poll','275c8410-2994-4b48-9d9d-1153656bd3ee');
INSERT INTO "workflow_status" VALUES('waits','PENDING','luma_poll.luma.generation',NULL,NULL,NULL,NULL,NULL,NULL,'worker-of-release-1',1795648845000,1795648845000,'luma-poll-1','',NULL,NULL,1,'luma',NULL,NULL,NULL,1795648845000,NULL,0,NULL,NULL,'aaa26df7-0f8e-4347-b239-3d00f85524e5',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'luma-poll','e0b9095d-2329-45d1-8502-b147f496dc91');
INSERT INTO "workflow_status" VALUES('queued','ENQUEUED','luma_poll.luma.generation',NULL,NULL,NULL,NULL,NULL,NULL,'e2e1abd9-8001-409c-9794-65c8c99225e0',1795648846000,1795648846000,'luma-poll-1','',NULL,NULL,0,'luma',NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'luma-poll','3f24febc-3b95-42bc-95b1-f8118fd793a9');
CREATE INDEX workflow_status_created_at_index ON workflow_status (created_at);
CREATE INDEX idx_workflow_topic ON notifications (destination_uuid, topic);
CREATE INDEX "idx_workflow_status_delayed" ON "workflow_status" ("delay_until_epoch_ms") WHERE status = 'DELAYED';
CREATE INDEX "idx_workflow_status_forked_from" ON "workflow_status" ("forked_from") WHERE "forked_from" IS NOT NULL;
CREATE INDEX "idx_workflow_status_parent_workflow_id" ON "workflow_status" ("parent_workflow_id") WHERE "parent_workflow_id" IS NOT NULL;
CREATE UNIQUE INDEX "uq_workflow_status_dedup_id" ON "workflow_status" ("queue_name", "deduplication_id") WHERE "deduplication_id" IS NOT NULL;
CREATE INDEX "idx_workflow_status_pending" ON "workflow_status" ("created_at") WHERE "status" = 'PENDING';
CREATE INDEX "idx_workflow_status_failed" ON "workflow_status" ("status", "created_at") WHERE "status" IN ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED');
CREATE INDEX "idx_workflow_status_rate_limited" ON "workflow_status" ("queue_name", "started_at_epoch_ms") WHERE "rate_limited" = TRUE;
CREATE INDEX "idx_workflow_status_completed_at" ON "workflow_status" ("completed_at") WHERE "completed_at" IS NOT NULL;
CREATE INDEX "idx_workflow_status_started_at" ON "workflow_status" ("started_at_epoch_ms") WHERE "started_at_epoch_ms" IS NOT NULL;
CREATE INDEX "idx_workflow_status_schedule_name" ON "workflow_status" ("schedule_name") WHERE "schedule_name" IS NOT NULL;
CREATE UNIQUE INDEX "uq_application_versions_owner_version"
    ON application_versions ("application_name", "version_name")
    WHERE "application_name" IS NOT NULL;
CREATE UNIQUE INDEX "uq_application_versions_unclaimed_version"
    ON application_versions ("version_name")
    WHERE "application_name" IS NULL;
CREATE INDEX idx_workflow_input_retention
    ON workflow_input (retention_timestamp);
CREATE INDEX idx_workflow_output_retention
    ON workflow_output (retention_timestamp);
CREATE INDEX idx_operation_outputs_retention
    ON operation_outputs (retention_timestamp);
CREATE INDEX "idx_workflow_status_in_flight_v2" ON "workflow_status" ("queue_name", "status", "priority", "created_at", "application_name") WHERE "status" IN ('ENQUEUED', 'PENDING');
CREATE INDEX "idx_workflow_status_partition_dequeue_v3" ON "workflow_status" ("queue_name", "status", "queue_partition_key", "priority", "created_at", "workflow_uuid", "application_name") WHERE "status" IN ('ENQUEUED', 'PENDING') AND "queue_partition_key" IS NOT NULL;
CREATE INDEX "idx_operation_outputs_completed_at_function_name_v2" ON "operation_outputs" ("completed_at_epoch_ms", "function_name", "application_name");
CREATE INDEX "idx_workflow_status_deadline" ON "workflow_status" ("workflow_deadline_epoch_ms") WHERE "status" IN ('ENQUEUED', 'PENDING', 'DELAYED') AND "workflow_deadline_epoch_ms" IS NOT NULL;
CREATE INDEX "idx_application_versions_timestamp" ON "application_versions" ("version_timestamp" DESC);
CREATE INDEX "idx_application_versions_owner_timestamp" ON "application_versions" ("application_name", "version_timestamp" DESC);
CREATE INDEX luma_submissions_unknown ON luma_submissions (queue) WHERE unknown;
COMMIT;
