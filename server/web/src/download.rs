//! Sending a file: length, validators, ranges, streamed.

use std::path::Path;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio_util::io::ReaderStream;

use crate::error::ApiError;

const BUFFER_BYTES: usize = 256 << 10;
/// For what is named by its content, or never written twice.
pub const FOREVER: &str = "private, max-age=31536000, immutable";

/// What is sent besides the bytes.
pub struct FileAnswer<'a> {
    pub content_type: &'static str,
    /// Without quotes. Must change when a byte changes.
    pub etag: String,
    pub cache_control: &'static str,
    /// Plain ASCII name that a browser saves it under.
    pub save_as: Option<&'a str>,
}

/// Answers a GET or HEAD for `path`.
///
/// # Errors
/// 404 when it is not there, 416 when the range is outside.
pub async fn send(
    path: &Path,
    answer: FileAnswer<'_>,
    method: &Method,
    request: &HeaderMap,
) -> Result<Response, ApiError> {
    let mut file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ApiError::NotFound("such file".into())),
        Err(e) => return Err(ApiError::internal(e)),
    };
    let meta = file.metadata().await.map_err(ApiError::internal)?;
    if !meta.is_file() {
        return Err(ApiError::NotFound("such file".into()));
    }
    let length = meta.len();
    let etag = format!("\"{}\"", answer.etag);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(answer.cache_control));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(&mut headers, header::ETAG, &etag)?;
    if let Some(name) = answer.save_as {
        let value = format!("attachment; filename=\"{name}\"");
        insert(&mut headers, header::CONTENT_DISPOSITION, &value)?;
    }
    if names_etag(request, header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    // A range of another version would be glued to the wrong bytes.
    let same_version = !request.contains_key(header::IF_RANGE) || names_etag(request, header::IF_RANGE, &etag);
    let range = request.get(header::RANGE).filter(|_| same_version);
    let (status, start, count) = match range.and_then(|r| r.to_str().ok()).map(|r| parse_range(r, length)) {
        Some(Wanted::Part { start, end }) => {
            let value = format!("bytes {start}-{end}/{length}");
            insert(&mut headers, header::CONTENT_RANGE, &value)?;
            (StatusCode::PARTIAL_CONTENT, start, end - start + 1)
        }
        Some(Wanted::Outside) => return Err(ApiError::Range { length_bytes: length }),
        Some(Wanted::All) | None => (StatusCode::OK, 0, length),
    };
    insert(&mut headers, header::CONTENT_LENGTH, &count.to_string())?;
    if method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    file.seek(SeekFrom::Start(start)).await.map_err(ApiError::internal)?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(count), BUFFER_BYTES));
    Ok((status, headers, body).into_response())
}

/// A validator for files without a hash of their own: their size and when they were written.
pub fn weak_identity(meta: &std::fs::Metadata) -> String {
    let since = meta
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    format!("{:x}-{:x}", meta.len(), since.map_or(0, |d| d.as_nanos()))
}

/// Is this entity tag (with quotes) among those of the header?
pub fn names_etag(request: &HeaderMap, name: header::HeaderName, etag: &str) -> bool {
    let values = request.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag)
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) -> Result<(), ApiError> {
    headers.insert(name, HeaderValue::from_str(value).map_err(ApiError::internal)?);
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Wanted {
    All,
    /// Both ends included.
    Part {
        start: u64,
        end: u64,
    },
    Outside,
}

/// One range; a server may answer several, or what it does not understand, with everything (RFC 9110, 14.2).
fn parse_range(text: &str, length: u64) -> Wanted {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Wanted::All;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (start, end) = match (first.trim(), number(first), last.trim(), number(last)) {
        ("", _, _, Some(count)) => (length.saturating_sub(count), length.saturating_sub(1)),
        (_, Some(start), "", _) => (start, length.saturating_sub(1)),
        (_, Some(start), _, Some(end)) if start <= end => (start, end.min(length.saturating_sub(1))),
        _ => return Wanted::All,
    };
    let empty_suffix = first.trim().is_empty() && number(last) == Some(0);
    if start >= length || empty_suffix {
        return Wanted::Outside;
    }
    Wanted::Part { start, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let part = |start, end| Wanted::Part { start, end };
        let cases = [
            ("bytes=0-0", part(0, 0)),
            ("bytes=0-", part(0, 9)),
            ("bytes=3-5", part(3, 5)),
            ("bytes=3-99", part(3, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=9-", part(9, 9)),
            ("bytes=10-", Wanted::Outside),
            ("bytes=-0", Wanted::Outside),
            ("bytes=5-3", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=x-", Wanted::All),
            ("bytes=-", Wanted::All),
            ("rows=0-1", Wanted::All),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::Outside);
    }
}
