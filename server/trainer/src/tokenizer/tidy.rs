//! What ftfy does to a prompt before CLIP's own tokenizer sees it, as far as people type it: HTML entities, curly
//! quotes, ligatures, full-width letters, control characters. Mojibake is left alone.

use tokenizers::NormalizedString;

/// The prompt with those repaired, composed (NFC) and in lower case.
pub(super) fn tidy(prompt: &str) -> String {
    // ftfy takes a text with `<` in it for HTML, in which entities have their meaning.
    let unescaped = if prompt.contains('<') || !prompt.contains('&') {
        prompt.to_owned()
    } else {
        unescape(prompt)
    };
    let mut repaired = String::with_capacity(unescaped.len());
    for c in unescaped.chars() {
        match c {
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => repaired.push('\''),
            '\u{201c}'..='\u{201f}' => repaired.push('"'),
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => {}
            '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
            '\u{132}' | '\u{133}' | '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' => push_plain(&mut repaired, c),
            '\u{fb00}'..='\u{fb06}' | '\u{ff01}'..='\u{ffee}' | '\u{3000}' => push_plain(&mut repaired, c),
            _ => repaired.push(c),
        }
    }
    let mut composed = NormalizedString::from(repaired);
    composed.nfc();
    // The whole text at once, so that a sigma that ends a word is lowered as Python does.
    composed.get().to_lowercase()
}

/// The compatibility form (NFKC) of a ligature or a full-width letter.
fn push_plain(text: &mut String, c: char) {
    let mut plain = NormalizedString::from(c.to_string());
    plain.nfkc();
    text.push_str(plain.get());
}

/// `&amp;`, `&#39;` and their like; anything else that starts with `&` stays.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // The longest entity of ours is `&#x10ffff;`.
        let end = rest.bytes().take(10).position(|b| b == b';');
        match end.and_then(|end| Some((entity(&rest[1..end])?, end))) {
            Some((c, end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn entity(name: &str) -> Option<char> {
    let code = match name {
        "amp" => return Some('&'),
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "quot" => return Some('"'),
        "apos" => return Some('\''),
        "nbsp" => return Some('\u{a0}'),
        "hellip" => return Some('…'),
        "ndash" => return Some('–'),
        "mdash" => return Some('—'),
        _ => name.strip_prefix('#')?,
    };
    let code = match code.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => code.parse(),
    };
    char::from_u32(code.ok()?)
}

#[cfg(test)]
mod tests {
    use super::tidy;

    #[test]
    fn what_phones_and_web_pages_put_into_prompts_is_plain_afterwards() {
        assert_eq!(tidy("it’s “so” ﬁne"), "it's \"so\" fine");
        assert_eq!(tidy("ＦＵＬＬ"), "full");
        assert_eq!(tidy("a &amp; b &#39;c&#x27; &nope; &"), "a & b 'c' &nope; &");
        assert_eq!(tidy("<b> &amp;"), "<b> &amp;");
        assert_eq!(tidy("bell\u{7}"), "bell");
        assert_eq!(tidy("ὈΔΥΣΣΕΎΣ"), "ὀδυσσεύς");
    }
}
