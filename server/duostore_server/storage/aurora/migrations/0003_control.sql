-- The same comparison by bytes as in 0001.

CREATE TABLE duostore.control (
    topic text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    value jsonb NOT NULL,
    caller text NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (topic, name)
);

COMMENT ON TABLE duostore.control IS
    'What is set at run time: every process reads its topics once a second. What no row says is '
    'as the configuration has it.';
COMMENT ON COLUMN duostore.control.topic IS
    'What a row is about. quota_limit: the limit of a subject of a quota.';
COMMENT ON COLUMN duostore.control.name IS
    'What is set, within the topic. quota_limit: quota#subject, for the subject in every tenant, '
    'or quota#tenant#subject; a subject that holds a # always has its tenant before it, be it '
    'empty.';
COMMENT ON COLUMN duostore.control.value IS
    'What it is set to. quota_limit: a whole number, 1 to 10^12.';
COMMENT ON COLUMN duostore.control.caller IS
    'Who set it, by what was said to the command; may be empty.';
