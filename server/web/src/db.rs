//! The SQLite file: what photos and jobs there are. The job folders hold the runs themselves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

/// What `PRAGMA user_version` must be; migrations go one version at a time.
const SCHEMA_VERSION: i64 = 2;

const SCHEMA_1: &str = "
CREATE TABLE photos (
    sha256   TEXT PRIMARY KEY,
    side_px  INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    origin   TEXT NOT NULL,
    added_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE jobs (
    place      INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    title      TEXT NOT NULL,
    recipe     TEXT NOT NULL,
    state      TEXT NOT NULL,
    step       INTEGER NOT NULL,
    steps      INTEGER NOT NULL,
    last_seq   INTEGER NOT NULL
) STRICT;
";

/// NULL in the rows of before: it was not kept then.
const SCHEMA_2: &str = "ALTER TABLE jobs ADD COLUMN loads_in_webuis INTEGER;";

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("database")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database was written by a newer Likeness (version {found}, this one knows {SCHEMA_VERSION})")]
    Newer { found: i64 },
    #[error("a database task ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// One connection, used by one thread at a time: writes never wait for each other inside SQLite.
#[derive(Clone)]
pub struct Db(Arc<Mutex<Connection>>);

impl Db {
    /// # Errors
    /// When the file cannot be opened, or a newer Likeness wrote it.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        Self::prepare(Connection::open(path)?)
    }

    #[cfg(test)]
    pub fn in_memory() -> Result<Self, DbError> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, DbError> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > SCHEMA_VERSION {
            return Err(DbError::Newer { found });
        }
        for (version, schema) in [(1, SCHEMA_1), (2, SCHEMA_2)] {
            if found < version {
                let change = connection.transaction()?;
                change.execute_batch(schema)?;
                change.pragma_update(None, "user_version", version)?;
                change.commit()?;
            }
        }
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Runs `work` where it may block.
    ///
    /// # Errors
    /// What SQLite says.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, DbError> {
        let db = self.clone();
        Ok(tokio::task::spawn_blocking(move || db.now(work)).await??)
    }

    /// Runs `work` on this thread: for start-up, and for callers that block anyway.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn now<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        work(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use app::recipe::{Concept, RecipeDraft};

    use super::*;

    #[test]
    fn a_database_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("likeness.sqlite");
        drop(Db::open(&path).expect("new"));
        let db = Db::open(&path).expect("again");
        db.now(|c| c.pragma_update(None, "user_version", 99)).expect("set");
        drop(db);
        assert!(matches!(Db::open(&path), Err(DbError::Newer { found: 99 })));
    }

    #[test]
    fn jobs_of_the_first_version_are_still_there() {
        let connection = Connection::open_in_memory().expect("opens");
        let recipe = RecipeDraft {
            concepts: vec![Concept {
                instance_prompt: "photo of zwx dog".into(),
                instance_data_dir: "photos/0".into(),
                ..Concept::default()
            }],
            prior: None,
            ..RecipeDraft::default()
        };
        let recipe = serde_json::to_string(&recipe.check().expect("good")).expect("JSON");
        connection.execute_batch(SCHEMA_1).expect("made");
        connection.pragma_update(None, "user_version", 1).expect("set");
        let row = "INSERT INTO jobs (id, created_ms, title, recipe, state, step, steps, last_seq)
                   VALUES ('dog-1', 1, 'photo of zwx dog', ?1, '{\"state\":\"done\"}', 8, 8, 9)";
        connection.execute(row, [recipe]).expect("added");
        let db = Db::prepare(connection).expect("brought up");
        let jobs = crate::jobs::table::all(&db).expect("read");
        let [(summary, _, loads_in_webuis)] = &jobs[..] else {
            panic!("{} jobs", jobs.len())
        };
        assert_eq!((summary.step, *loads_in_webuis), (8, None));
    }
}
