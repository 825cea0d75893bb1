import type { Migration } from './migration.ts'

/**
 * A generation that was being deleted when its bytes were uploaded again loses its row to the new one, with shards perhaps still to be
 * told. What they are owed stands here until all of them have answered. A trigger, so that every way to replace a row remembers it.
 */
export const owedDrops: Migration = {
  number: 12,
  name: 'owed-drops',
  schema: 1,
  phase: 'expand',
  sql: `
CREATE TABLE owed_drops (
  digest bytea NOT NULL,
  generation text COLLATE "C" NOT NULL,
  partition smallint NOT NULL,
  bytes bigint NOT NULL,
  PRIMARY KEY (digest, generation)
);

CREATE FUNCTION owe_drops_1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO owed_drops VALUES (OLD.digest, OLD.generation, OLD.partition, OLD.bytes) ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE TRIGGER owe_drops AFTER UPDATE OF generation ON blobs FOR EACH ROW
  WHEN (OLD.state = 'purging' AND OLD.generation <> NEW.generation) EXECUTE FUNCTION owe_drops_1();
`,
}
