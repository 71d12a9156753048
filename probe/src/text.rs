//! Sanitizing of external text, so that it is safe to store and to print.

mod redact;

pub(crate) use redact::{HIDDEN, redact, redact_text};

/// Returns `bytes` as one line of at most `max` bytes. Secrets are redacted; control characters and invalid UTF-8 are escaped.
pub(crate) fn clean(bytes: &[u8], max: usize) -> String {
    // Redact before truncating: half a secret lacks the end by which it is recognized.
    let bytes = &*redact(bytes);
    let mut text = String::with_capacity(bytes.len().min(max));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Separators and direction marks also change the layout of text, but are not control characters.
            let hidden = matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || hidden {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
            if text.len() > max {
                return truncate(text, max);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    truncate(text, max)
}

/// Truncates a text at a character boundary, and appends `…` if anything was removed.
fn truncate(mut text: String, max: usize) -> String {
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

/// Returns whether `name` is a DNS subdomain (RFC 1123), as names of nodes are. Other names must not get into the path of a
/// request.
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
    fn escapes_control_characters_and_invalid_utf8() {
        assert_eq!(clean(b"a\x1b[31mb\nc\0", 99), "a\\u{1b}[31mb\\nc\\u{0}");
        assert_eq!(clean(b"\xff\xc3", 99), "\\xff\\xc3");
        assert_eq!(clean("\u{202e}abc\u{9b}".as_bytes(), 99), "\\u{202e}abc\\u{9b}");
    }

    #[test]
    fn redacts_secrets_before_truncating() {
        assert_eq!(clean(b"password=canary1 \x1b", 99), "password=[redacted] \\u{1b}");
        assert_eq!(clean(b"to http://user:canary1@proxy:3128", 21), "to http://[redacte…");
    }

    #[test]
    fn truncates_at_character_boundary() {
        assert_eq!(clean("ääää".as_bytes(), 8), "ääää");
        assert_eq!(clean("äääää".as_bytes(), 8), "ää…");
        assert_eq!(clean(b"abc", 0).len(), 3);
    }

    #[test]
    fn accepts_only_dns_subdomains_as_node_names() {
        for good in ["worker-3", "ip-10-0-0-1.eu-west-1.compute.internal", "a"] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in ["", "a/b", "../x", "A", "-a", "a..b", "a b", "a\n"] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
