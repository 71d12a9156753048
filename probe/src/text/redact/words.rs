//! The words and characters that tell a secret from a sentence.

use data_encoding::BASE64;

use super::HIDDEN;

/// What the last part of a name must be for its value to be a secret; lower case, without `-`, `_` and `.`.
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

/// What a name introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A secret of any form.
    Secret,
    /// The value of the header: a scheme and credentials.
    Authorization,
    /// Basic credentials, as container registries' configurations hold them. Other values are no secrets.
    Basic,
}

/// Returns what a name introduces. A number at its end is none of its letters.
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

/// A word that is not one of a sentence: digits among letters, capitals inside, or characters of base64.
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

/// Basic credentials (RFC 7617) are `user:password` in base64; what was cut is decoded as far as it goes.
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

/// The characters of both alphabets, their padding, and the dots of a JWT.
pub(super) fn is_base64(byte: u8) -> bool {
    is_base64_url(byte) || matches!(byte, b'+' | b'/' | b'=' | b'.')
}

/// Not what ends a URL in a text.
pub(super) fn is_url(byte: u8) -> bool {
    !byte.is_ascii_whitespace() && byte != 0 && !b"\"<>\\".contains(&byte)
}
