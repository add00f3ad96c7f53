//! The page: files built into the executable, or, for those who work on it, read from a folder.

mod rules;

use std::borrow::Cow;
use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::download::names_etag;
use crate::error::ApiError;

/// One file of the built page.
pub struct PageFile {
    pub name: &'static str,
    pub sha256: &'static str,
    pub plain: &'static [u8],
    pub br: Option<&'static [u8]>,
    pub gzip: Option<&'static [u8]>,
    pub script_hashes: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/page_files.rs"));

/// Where the page comes from.
#[derive(Clone, Debug)]
pub enum Page {
    Embedded,
    Folder(PathBuf),
}

/// A file on its way out.
struct Found {
    name: String,
    bytes: Cow<'static, [u8]>,
    encoding: Option<&'static str>,
    etag: String,
    script_hashes: Vec<String>,
}

impl Page {
    /// Answers any address outside `/api`.
    ///
    /// # Errors
    /// 404 and 405.
    pub fn answer(&self, method: &Method, path: &str, request: &HeaderMap) -> Result<Response, ApiError> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(ApiError::MethodNotAllowed);
        }
        let name = path.trim_start_matches('/');
        let found = match self.find(name, request) {
            Some(found) => found,
            // Addresses inside the page: a browser that asks for one starts the page, which finds its way.
            None if is_place(name, request) => {
                let index = self.find("index.html", request);
                index.ok_or_else(|| ApiError::NotFound("page".into()))?
            }
            None => return Err(ApiError::NotFound(format!("page {path}"))),
        };
        found.answer(method, request)
    }

    fn find(&self, name: &str, request: &HeaderMap) -> Option<Found> {
        match self {
            Self::Embedded => {
                let file = FILES.iter().find(|f| f.name == name)?;
                let (bytes, encoding) = negotiate(file, request);
                Some(Found {
                    name: name.into(),
                    bytes: Cow::Borrowed(bytes),
                    encoding,
                    etag: format!(
                        "\"{}{}\"",
                        &file.sha256[..32],
                        encoding.map_or(String::new(), |e| format!("-{e}"))
                    ),
                    script_hashes: file.script_hashes.iter().map(|h| (*h).to_owned()).collect(),
                })
            }
            Self::Folder(dir) => {
                let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\\');
                if !name.split('/').all(plain) {
                    return None;
                }
                let bytes = std::fs::read(dir.join(name)).ok()?;
                let html = name.ends_with(".html");
                Some(Found {
                    name: name.into(),
                    etag: format!("\"{}\"", &rules::sha256_hex(&bytes)[..32]),
                    script_hashes: if html {
                        rules::inline_script_hashes(&bytes)
                    } else {
                        Vec::new()
                    },
                    bytes: Cow::Owned(bytes),
                    encoding: None,
                })
            }
        }
    }
}

impl Found {
    fn answer(self, method: &Method, request: &HeaderMap) -> Result<Response, ApiError> {
        let mut headers = HeaderMap::new();
        let cache = if has_hash(&self.name) {
            "public, max-age=31536000, immutable"
        } else {
            "no-cache"
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime(&self.name)));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        let csp = content_security_policy(&self.script_hashes);
        for (name, value) in [(header::ETAG, &self.etag), (header::CONTENT_SECURITY_POLICY, &csp)] {
            headers.insert(name, HeaderValue::from_str(value).map_err(ApiError::internal)?);
        }
        if let Some(encoding) = self.encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        if names_etag(request, header::IF_NONE_MATCH, &self.etag) {
            return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.bytes.len()));
        if method == Method::HEAD {
            return Ok(headers.into_response());
        }
        let body = match self.bytes {
            Cow::Borrowed(bytes) => axum::body::Body::from(bytes),
            Cow::Owned(bytes) => axum::body::Body::from(bytes),
        };
        Ok((headers, body).into_response())
    }
}

/// Brotli, gzip, or as it is: the first that exists and that the client takes.
fn negotiate(file: &PageFile, request: &HeaderMap) -> (&'static [u8], Option<&'static str>) {
    let takes = |encoding: &str| {
        let values = request
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|v| v.to_str().ok());
        let mut offers = values.flat_map(|v| v.split(',')).map(|offer| {
            let (name, quality) = offer.split_once(';').unwrap_or((offer, ""));
            (name.trim(), quality.replace(' ', ""))
        });
        offers.any(|(name, q)| name.eq_ignore_ascii_case(encoding) && !is_zero(&q))
    };
    match (file.br, file.gzip) {
        (Some(br), _) if takes("br") => (br, Some("br")),
        (_, Some(gzip)) if takes("gzip") => (gzip, Some("gzip")),
        _ => (file.plain, None),
    }
}

fn is_zero(quality: &str) -> bool {
    quality.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0)
}

/// A place inside the page, such as `/jobs/dog-x7k2`, asked for by a browser that wants to show it.
fn is_place(name: &str, request: &HeaderMap) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    let accept = request
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    name.is_empty() || (!last.contains('.') && accept.contains("text/html"))
}

/// `frontend-0123456789abcdef_bg.wasm`: the name changes with the content.
fn has_hash(name: &str) -> bool {
    name.split(['-', '.', '_', '/'])
        .any(|part| part.len() >= 12 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn mime(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "wasm" => "application/wasm",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "txt" => "text/plain; charset=utf-8",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

/// Only this server's files run; WASM may compile; styles may be set on elements.
fn content_security_policy(script_hashes: &[String]) -> String {
    let hashes: String = script_hashes.iter().map(|hash| format!(" '{hash}'")).collect();
    format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; \
         img-src 'self' blob: data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: header::HeaderName, value: &'static str) -> HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn inline_scripts_are_hashed_and_others_are_not() {
        let html = b"<script type=\"module\">alert(1)</script><script src=\"/a.js\"></script>";
        // printf 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert_eq!(
            rules::inline_script_hashes(html),
            ["sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI="]
        );
    }

    #[test]
    fn names_with_a_hash_are_kept_forever() {
        for name in ["frontend-0123456789abcdef_bg.wasm", "style-fedcba9876543210.css"] {
            assert!(has_hash(name), "{name}");
        }
        for name in ["index.html", "photo_worker.js", "photo_worker_bg.wasm", "favicon.svg"] {
            assert!(!has_hash(name), "{name}");
        }
    }

    #[test]
    fn only_browsers_get_the_page_for_places() {
        let html = request(header::ACCEPT, "text/html,*/*;q=0.8");
        assert!(is_place("jobs/dog-x7k2", &html));
        assert!(!is_place("missing.js", &html));
        assert!(!is_place("jobs/dog-x7k2", &request(header::ACCEPT, "application/json")));
        assert!(is_place("", &HeaderMap::new()));
    }

    #[test]
    fn the_client_chooses_the_encoding() {
        let file = PageFile {
            name: "a",
            sha256: "",
            plain: b"plain",
            br: Some(b"br"),
            gzip: Some(b"gz"),
            script_hashes: &[],
        };
        let chosen = |accept| negotiate(&file, &request(header::ACCEPT_ENCODING, accept)).1;
        assert_eq!(chosen("gzip, deflate, br"), Some("br"));
        assert_eq!(chosen("gzip, br; q=0"), Some("gzip"));
        assert_eq!(chosen("identity"), None);
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn a_folder_serves_nothing_outside_of_it() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("a.js"), "1").expect("written");
        std::fs::create_dir(folder.path().join("in")).expect("made");
        let page = Page::Folder(folder.path().join("in"));
        let outside = Page::Folder(folder.path().to_owned());
        let none = HeaderMap::new();
        assert!(outside.find("a.js", &none).is_some());
        for name in ["../a.js", "/../a.js", "..", "", "x/../../a.js", ".env"] {
            assert!(page.find(name, &none).is_none(), "{name}");
        }
    }
}
