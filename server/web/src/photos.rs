//! Uploaded crops, stored under the sha256 of their bytes: the same crop twice is one file.

use std::io::Write;
use std::path::{Path, PathBuf};

use app::api::{PhotoOrigin, StoredPhoto};
use app::upload;
use sha2::{Digest, Sha256};

use crate::db::{Db, DbError, now_ms};
use crate::error::ApiError;

#[derive(Clone)]
pub struct Photos {
    db: Db,
    dir: PathBuf,
}

impl Photos {
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(db: Db, dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { db, dir })
    }

    /// Where the photo of that name lies. The caller has checked the name.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.png"))
    }

    /// `None` when it is not here, or its file went missing.
    ///
    /// # Errors
    /// What the database says.
    pub async fn find(&self, sha256: &str) -> Result<Option<StoredPhoto>, DbError> {
        let (name, path) = (sha256.to_owned(), self.path(sha256));
        let row = self.db.run(move |db| {
            let mut statement = db.prepare_cached("SELECT side_px, bytes, origin FROM photos WHERE sha256 = ?1")?;
            let mut rows = statement.query([&name])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let origin: String = row.get(2)?;
            let photo = serde_json::from_str(&origin).ok().map(|origin| {
                rusqlite::Result::Ok(StoredPhoto {
                    sha256: name,
                    side: row.get(0)?,
                    bytes: row.get::<_, i64>(1)?.unsigned_abs(),
                    origin,
                })
            });
            photo.transpose()
        });
        Ok(row.await?.filter(|_| path.is_file()))
    }

    /// Judges and stores one crop. The file is on disk before the row.
    ///
    /// # Errors
    /// When the bytes are not what their name says, or not a photo to train on.
    pub async fn add(&self, sha256: String, file: Vec<u8>, origin: PhotoOrigin) -> Result<StoredPhoto, ApiError> {
        let photos = self.clone();
        let work = move || {
            let got = hex::encode(Sha256::digest(&file));
            if got != sha256 {
                let expected = sha256;
                return Err(ApiError::HashMismatch { expected, got });
            }
            let accepted = upload::check(&file)?;
            write_atomic(&photos.path(&sha256), &file).map_err(ApiError::internal)?;
            let photo = StoredPhoto {
                sha256,
                side: accepted.side_px,
                bytes: file.len() as u64,
                origin,
            };
            photos.insert(&photo).map_err(ApiError::internal)?;
            Ok(photo)
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
    }

    fn insert(&self, photo: &StoredPhoto) -> rusqlite::Result<()> {
        let origin = serde_json::to_string(&photo.origin).unwrap_or_default();
        self.db.now(|db| {
            db.execute(
                "INSERT OR REPLACE INTO photos (sha256, side_px, bytes, origin, added_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                (
                    &photo.sha256,
                    photo.side,
                    photo.bytes.cast_signed(),
                    origin,
                    now_ms().cast_signed(),
                ),
            )
        })?;
        Ok(())
    }
}

/// Scratch file, sync, rename, sync of the folder: a crash leaves the old file or the new one.
///
/// # Errors
/// What the file system says; the scratch file is gone then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut scratch = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    scratch.write_all(bytes)?;
    scratch.as_file().sync_all()?;
    scratch.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(dir)?.sync_all()
}
