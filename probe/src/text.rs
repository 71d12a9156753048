//! Text from outside, made safe to keep and to print.

mod redact;

pub(crate) use redact::{HIDDEN, redact, redact_text};

/// `bytes` as one line of at most `max` bytes: secrets are redacted, control characters and what is not UTF-8 are escaped.
pub(crate) fn clean(bytes: &[u8], max: usize) -> String {
    // Before it is cut: half a secret has no end by which it could be recognised.
    let bytes = &*redact(bytes);
    let mut text = String::with_capacity(bytes.len().min(max));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Also the separators and direction marks that move text about without being control characters.
            let hidden = matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || hidden {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
            if text.len() > max {
                return cut(text, max);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    cut(text, max)
}

/// Cuts at a character, and shows that it did.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max.saturating_sub('…'.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A node's name is a DNS subdomain (RFC 1123); anything else would end up in the path of a request.
pub(crate) fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_get_through() {
        assert_eq!(clean(b"a\x1b[31mb\nc\0", 99), "a\\u{1b}[31mb\\nc\\u{0}");
        assert_eq!(clean(b"\xff\xc3", 99), "\\xff\\xc3");
        assert_eq!(clean("\u{202e}abc\u{9b}".as_bytes(), 99), "\\u{202e}abc\\u{9b}");
    }

    #[test]
    fn a_secret_is_redacted_before_the_text_is_cut() {
        assert_eq!(clean(b"password=canary1 \x1b", 99), "password=[redacted] \\u{1b}");
        assert_eq!(clean(b"to http://user:canary1@proxy:3128", 21), "to http://[redacte…");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(clean("ääää".as_bytes(), 8), "ääää");
        assert_eq!(clean("äääää".as_bytes(), 8), "ää…");
        assert_eq!(clean(b"abc", 0).len(), 3);
    }

    #[test]
    fn a_name_that_is_no_node_s_gets_into_no_path() {
        for good in ["worker-3", "ip-10-0-0-1.eu-west-1.compute.internal", "a"] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in ["", "a/b", "../x", "A", "-a", "a..b", "a b", "a\n"] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
