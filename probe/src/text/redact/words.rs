//! Words and characters that distinguish secrets from prose.

use data_encoding::BASE64;

use super::HIDDEN;

/// Endings of names whose values are secrets, in lower case and without `-`, `_` and `.`.
const NAMES: [(&str, Kind); 14] = [
    ("password", Kind::Secret),
    ("passwd", Kind::Secret),
    ("passphrase", Kind::Secret),
    ("token", Kind::Secret),
    ("secret", Kind::Secret),
    ("apikey", Kind::Secret),
    ("accesskey", Kind::Secret),
    ("accountkey", Kind::Secret),
    ("secretkey", Kind::Secret),
    ("privatekey", Kind::Secret),
    ("presharedkey", Kind::Secret),
    ("clientkeydata", Kind::Secret),
    ("authorization", Kind::Authorization),
    ("auth", Kind::Basic),
];

/// Kind of value that a name introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A secret of any form.
    Secret,
    /// The value of an authorization header: a scheme and credentials.
    Authorization,
    /// Basic credentials, as in configurations of container registries. Other values are not secrets.
    Basic,
}

/// Returns the kind of value that a name introduces. Digits at its end are ignored.
pub(super) fn kind(name: &[u8]) -> Option<Kind> {
    let length = name.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |last| last + 1);
    let letters = || name[..length].iter().rev().filter(|byte| !matches!(byte, b'-' | b'_' | b'.'));
    let ends = |known: &str| {
        let mut letters = letters();
        known
            .bytes()
            .rev()
            .all(|wanted| letters.next().is_some_and(|byte| byte.eq_ignore_ascii_case(&wanted)))
    };
    NAMES.iter().find(|(known, _)| ends(known)).map(|(_, kind)| *kind)
}

/// Returns whether a word is unlikely in prose: digits among letters, capitals inside the word, or characters of base64.
pub(super) fn looks_secret(word: &[u8]) -> bool {
    if word == HIDDEN.as_bytes() {
        return true;
    }
    let core = word.strip_suffix(b".").or(word.strip_suffix(b":")).unwrap_or(word);
    let has = |is: fn(&u8) -> bool| core.iter().any(is);
    let letters = has(u8::is_ascii_alphabetic);
    let inner = core.iter().skip(1).any(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    let odd = has(|byte| b"+/=_$!#%^&*~|@".contains(byte));
    core.len() >= 6
        && (letters && has(u8::is_ascii_digit) || inner || odd || core.iter().all(u8::is_ascii_digit))
}

/// Returns whether a word is basic credentials (RFC 7617): `user:password` in base64. A truncated word is decoded as far as possible.
pub(super) fn is_basic(word: &[u8]) -> bool {
    let trimmed = &word[..word.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1)];
    let whole = trimmed.len() / 4 * 4;
    let mut padded = trimmed.to_vec();
    padded.resize(trimmed.len().div_ceil(4) * 4, b'=');
    let decoded = BASE64.decode(&padded).or_else(|_| BASE64.decode(&trimmed[..whole]));
    decoded.is_ok_and(|decoded| decoded.contains(&b':')) || word == HIDDEN.as_bytes()
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(super) fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

pub(super) fn is_base64_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Returns whether a byte belongs to either base64 alphabet, its padding, or the dots of a JWT.
pub(super) fn is_base64(byte: u8) -> bool {
    is_base64_url(byte) || matches!(byte, b'+' | b'/' | b'=' | b'.')
}

/// Returns whether a byte does not end a URL in a text.
pub(super) fn is_url(byte: u8) -> bool {
    !byte.is_ascii_whitespace() && byte != 0 && !b"\"<>\\".contains(&byte)
}
