//! The table `jobs`: one row per job, its latest state.

use app::job::{JobId, JobState, JobSummary};
use app::recipe::Recipe;

use crate::db::Db;

pub fn insert(db: &Db, job: &JobSummary, recipe: &Recipe, loads_in_webuis: Option<bool>) -> rusqlite::Result<()> {
    let (state, recipe) = (json(&job.state), json(recipe));
    db.now(|db| {
        db.execute(
            "INSERT INTO jobs (id, created_ms, title, recipe, state, step, steps, last_seq, loads_in_webuis)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                job.id.as_str(),
                job.created_ms.cast_signed(),
                &job.title,
                recipe,
                state,
                job.step,
                job.steps,
                job.last_seq.cast_signed(),
                loads_in_webuis,
            ),
        )
    })?;
    Ok(())
}

pub fn update(db: &Db, job: &JobSummary) -> rusqlite::Result<()> {
    let state = json(&job.state);
    db.now(|db| {
        db.execute(
            "UPDATE jobs SET state = ?2, step = ?3, steps = ?4, last_seq = ?5 WHERE id = ?1",
            (job.id.as_str(), state, job.step, job.steps, job.last_seq.cast_signed()),
        )
    })?;
    Ok(())
}

pub fn delete(db: &Db, id: &JobId) -> rusqlite::Result<()> {
    db.now(|db| db.execute("DELETE FROM jobs WHERE id = ?1", [id.as_str()]))?;
    Ok(())
}

/// A job, its recipe, and whether WebUIs load what it makes, where that is known.
pub type Row = (JobSummary, Recipe, Option<bool>);

/// In the order of the queue. A row that this version cannot read is left out and logged.
pub fn all(db: &Db) -> rusqlite::Result<Vec<Row>> {
    db.now(|db| {
        let mut statement = db.prepare(
            "SELECT id, created_ms, title, recipe, state, step, steps, last_seq, loads_in_webuis
             FROM jobs ORDER BY place",
        )?;
        let mut rows = statement.query([])?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, recipe, state): (String, String, String) = (row.get(0)?, row.get(3)?, row.get(4)?);
            let id_ok = JobId::parse(&id);
            let (Ok(id), Ok(recipe), Ok(state)) = (
                id_ok,
                serde_json::from_str::<Recipe>(&recipe),
                serde_json::from_str::<JobState>(&state),
            ) else {
                tracing::warn!("job {id} was written by another version and is left out");
                continue;
            };
            let summary = JobSummary {
                id,
                state,
                created_ms: row.get::<_, i64>(1)?.cast_unsigned(),
                step: row.get(5)?,
                steps: row.get(6)?,
                title: row.get(2)?,
                last_seq: row.get::<_, i64>(7)?.cast_unsigned(),
            };
            jobs.push((summary, recipe, row.get(8)?));
        }
        Ok(jobs)
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
