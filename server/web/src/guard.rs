//! Who may talk to this server. A page of another site must not reach it through the browser of the person at this
//! machine (cross-site requests, DNS rebinding), and beyond this machine a password is asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::error::ApiError;

const COOKIE: &str = "likeness_session";

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(
        "listening on {0} lets everyone on the network train and see every photo: give --password-file FILE, \
         or --no-password if that is meant, or listen on 127.0.0.1"
    )]
    NoPassword(SocketAddr),
    #[error("--public-url {0}: not an address like https://train.example.org")]
    PublicUrl(String),
    #[error("--password-file {path}: {reason}")]
    PasswordFile { path: std::path::PathBuf, reason: String },
}

/// The rules of one server.
#[derive(Debug)]
pub struct Guard {
    listen: IpAddr,
    public: Option<Public>,
    /// Names of this machine, when it listens on all its addresses.
    host_names: Vec<String>,
    password: Option<Password>,
}

#[derive(Debug)]
struct Public {
    /// `https://train.example.org`, as browsers send it.
    origin: String,
    host: String,
}

struct Password {
    digest: [u8; 32],
    /// Value of the cookie that stands for the password until the server ends.
    session: String,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Guard {
    /// # Errors
    /// When it would listen beyond this machine without protection, or an option is not usable.
    pub fn new(config: &crate::config::Serve) -> Result<Self, GuardError> {
        let listen = config.listen.ip();
        let password = config.password_file.as_deref().map(read_password).transpose()?;
        if !listen.is_loopback() && password.is_none() && !config.no_password {
            return Err(GuardError::NoPassword(config.listen));
        }
        let public = config.public_url.as_deref().map(Public::parse).transpose()?;
        let mut host_names = Vec::new();
        if listen.is_unspecified()
            && let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname")
        {
            let name = name.trim().to_ascii_lowercase();
            host_names = vec![format!("{name}.local"), name];
        }
        Ok(Self {
            listen,
            public,
            host_names,
            password,
        })
    }

    /// A name is only answered to when it is known to mean this server; an address cannot be rebound.
    fn knows_host(&self, host: &str) -> bool {
        let name = host_name(host).to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            let is_public = self.public.as_ref().is_some_and(|p| host_name(&p.host) == name);
            return address.is_loopback() || address == self.listen || self.listen.is_unspecified() || is_public;
        }
        name == "localhost"
            || name.ends_with(".localhost")
            || self.host_names.contains(&name)
            || self.public.as_ref().is_some_and(|p| host_name(&p.host) == name)
    }

    /// Does a browser say the request comes from another site? Programs send neither header.
    fn is_cross_site(&self, headers: &HeaderMap, host: &str) -> Option<String> {
        let text = |name: &str| {
            headers
                .get(name)
                .map(|v| v.to_str().unwrap_or("?").to_ascii_lowercase())
        };
        if let Some(origin) = text("origin") {
            let same_host = origin
                .split_once("://")
                .is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
            let is_public = self.public.as_ref().is_some_and(|p| p.origin == origin);
            return (!same_host && !is_public).then_some(origin);
        }
        text("sec-fetch-site").filter(|site| site != "same-origin" && site != "none")
    }

    fn is_signed_in(&self, headers: &HeaderMap) -> SignedIn {
        let Some(password) = &self.password else {
            return SignedIn::Yes;
        };
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        let mut pairs = cookies
            .flat_map(|v| v.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        if pairs.any(|(name, value)| name == COOKIE && same(value.as_bytes(), password.session.as_bytes())) {
            return SignedIn::Yes;
        }
        match basic_password(headers) {
            Some(given) if same_digest(&Sha256::digest(&given).into(), &password.digest) => SignedIn::Now {
                cookie: format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", password.session),
            },
            Some(_) => SignedIn::Wrong,
            None => SignedIn::No,
        }
    }
}

enum SignedIn {
    Yes,
    /// With the password itself; the cookie saves browsers that do not send it on WebSockets.
    Now {
        cookie: String,
    },
    Wrong,
    No,
}

impl Public {
    fn parse(url: &str) -> Result<Self, GuardError> {
        let bad = || GuardError::PublicUrl(url.to_owned());
        let uri: Uri = url.trim().trim_end_matches('/').parse().map_err(|_| bad())?;
        let scheme = uri.scheme_str().ok_or_else(bad)?;
        let authority = uri.authority().ok_or_else(bad)?.as_str().to_ascii_lowercase();
        if !matches!(scheme, "http" | "https") || authority.contains('@') {
            return Err(bad());
        }
        Ok(Self {
            origin: format!("{scheme}://{authority}"),
            host: authority,
        })
    }
}

fn read_password(path: &std::path::Path) -> Result<Password, GuardError> {
    let refuse = |reason: String| GuardError::PasswordFile {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    let password = text.lines().next().unwrap_or_default().trim_end_matches('\r');
    if password.is_empty() {
        return Err(refuse("its first line is empty; write the password there".into()));
    }
    let mut secret = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut secret));
    read.map_err(|e| refuse(format!("no randomness for a session: {e}")))?;
    Ok(Password {
        digest: Sha256::digest(password).into(),
        session: hex::encode(secret),
    })
}

/// The password of HTTP Basic authentication; the user name says nothing here.
fn basic_password(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

fn same(a: &[u8], b: &[u8]) -> bool {
    same_digest(&Sha256::digest(a).into(), &Sha256::digest(b).into())
}

/// Takes the same time wherever the two differ.
fn same_digest(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    std::hint::black_box(difference) == 0
}

/// `Host` without its port.
fn host_name(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// The layer around every route.
///
/// # Errors
/// When the request may not pass.
pub async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    let from_header = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let host = from_header
        .or_else(|| request.uri().authority().map(|a| a.as_str()))
        .unwrap_or_default();
    if !guard.knows_host(host) {
        return Err(ApiError::WrongHost(host.to_owned()));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let is_socket = headers.contains_key(header::UPGRADE);
    if (changes || is_socket)
        && let Some(origin) = guard.is_cross_site(headers, host)
    {
        return Err(ApiError::CrossSite(origin));
    }
    let cookie = match guard.is_signed_in(headers) {
        SignedIn::Yes => None,
        SignedIn::Now { cookie } => HeaderValue::from_str(&cookie).ok(),
        SignedIn::No => return Err(ApiError::Password),
        SignedIn::Wrong => {
            // Guessing takes time.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            return Err(ApiError::Password);
        }
    };
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    if let Some(cookie) = cookie {
        headers.insert(header::SET_COOKIE, cookie);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use clap::Parser;

    fn guard(line: &[&str]) -> Result<Guard, GuardError> {
        let line = ["likeness"].iter().chain(line);
        Guard::new(&Config::try_parse_from(line).expect("parses").serve)
    }

    #[test]
    fn a_rebound_name_is_not_answered() {
        let local = guard(&[]).expect("good");
        for host in [
            "127.0.0.1:7860",
            "localhost:7860",
            "LOCALHOST",
            "[::1]:7860",
            "a.localhost",
            "127.0.0.9",
        ] {
            assert!(local.knows_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example:7860",
            "localhost.evil.example",
            "192.168.1.4",
            "127.0.0.1.evil.example",
        ] {
            assert!(!local.knows_host(host), "{host}");
        }
        let public = guard(&["--public-url", "https://Train.example.org/"]).expect("good");
        assert!(public.knows_host("train.example.org"));
        assert!(!public.knows_host("example.org"));
        let open = guard(&["--listen", "0.0.0.0:1", "--no-password"]).expect("good");
        assert!(open.knows_host("192.168.1.4:7860"));
        assert!(!open.knows_host("evil.example"));
    }

    #[test]
    fn another_sites_page_cannot_act() {
        let guard = guard(&["--public-url", "https://train.example.org"]).expect("good");
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            guard.is_cross_site(&headers, "127.0.0.1:7860").is_some()
        };
        for origin in ["http://127.0.0.1:7860", "https://train.example.org"] {
            assert!(!with("origin", origin), "{origin}");
        }
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:8080",
            "http://localhost:7860",
            "",
        ] {
            assert!(with("origin", origin), "{origin}");
        }
        assert!(with("sec-fetch-site", "cross-site"));
        assert!(!with("sec-fetch-site", "same-origin"));
        assert!(!with("accept", "x"));
    }

    #[test]
    fn beyond_this_machine_a_password_is_needed() {
        assert!(matches!(
            guard(&["--listen", "0.0.0.0:1"]),
            Err(GuardError::NoPassword(_))
        ));
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("password");
        let path = file.to_string_lossy().into_owned();
        assert!(matches!(
            guard(&["--password-file", &path]),
            Err(GuardError::PasswordFile { .. })
        ));
        std::fs::write(&file, "\n").expect("written");
        assert!(matches!(
            guard(&["--password-file", &path]),
            Err(GuardError::PasswordFile { .. })
        ));
        std::fs::write(&file, "s:cret\n").expect("written");
        let guard = guard(&["--listen", "0.0.0.0:1", "--password-file", &path]).expect("good");
        assert!(!format!("{guard:?}").contains("cret"));

        let with = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(&value).expect("plain"));
            guard.is_signed_in(&headers)
        };
        let basic = |text: &str| with("authorization", format!("Basic {}", STANDARD.encode(text)));
        assert!(matches!(basic("me:s:cret"), SignedIn::Now { .. }));
        assert!(matches!(basic("me:secret"), SignedIn::Wrong));
        assert!(matches!(with("accept", "x".into()), SignedIn::No));
        let SignedIn::Now { cookie } = basic(":s:cret") else {
            panic!("signed in")
        };
        let pair = cookie.split(';').next().expect("a pair").to_owned();
        assert!(matches!(with("cookie", format!("a=b; {pair}")), SignedIn::Yes));
        assert!(matches!(with("cookie", format!("{COOKIE}=00")), SignedIn::No));
    }

    #[test]
    fn a_public_url_is_scheme_and_host() {
        for bad in ["train.example.org", "ftp://x", "https://", "https://me@x"] {
            assert!(guard(&["--public-url", bad]).is_err(), "{bad}");
        }
    }
}
