//! What the build script and the server both need to know about the page's files.

use base64::Engine;
use sha2::{Digest, Sha256};

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// `sha256-...` of each inline script, for the content security policy. Trunk writes the one that starts the page.
pub fn inline_script_hashes(html: &[u8]) -> Vec<String> {
    let html = String::from_utf8_lossy(html);
    let mut hashes = Vec::new();
    let mut rest = &html[..];
    while let Some(start) = rest.find("<script") {
        rest = &rest[start..];
        let Some(open) = rest.find('>') else { break };
        let (tag, after) = rest.split_at(open + 1);
        let Some(end) = after.find("</script") else { break };
        if !tag.contains(" src=") {
            let digest = Sha256::digest(&after.as_bytes()[..end]);
            let text = base64::engine::general_purpose::STANDARD.encode(digest);
            hashes.push(format!("sha256-{text}"));
        }
        rest = &after[end..];
    }
    hashes
}
