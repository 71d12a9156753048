//! Redacts secrets in texts. This module is the only definition of what counts as a secret.
//!
//! Programs print credentials in errors: plugins their kubeconfig, proxies their account, libraries a value that they could not
//! parse. Only the secret is replaced, so that the rest of the message remains useful.
//!
//! The scanner is hand-written, because the end of a value depends on its quotes and on whether it is a word of a sentence. It
//! reads each byte a bounded number of times. It is idempotent, except for bytes that no program prints.

use std::borrow::Cow;
use std::ops::Range;

mod words;

use words::{Kind, is_base64, is_base64_url, is_basic, is_blank, is_name, is_url, kind, looks_secret};

/// Replacement of a secret.
pub(crate) const HIDDEN: &str = "[redacted]";

/// Maximum length of a name that is examined, bytes: only its end is relevant.
const NAME: usize = 64;
/// Maximum length of an unquoted word after `name: ` that may be prose, bytes.
const PROSE: usize = 64;
/// Maximum length of user information that contains a slash, bytes.
const URL: usize = 256;
/// Maximum number of blanks between a name and its value.
const BLANKS: usize = 8;
/// Minimum length of a base64 text starting like JSON to count as a token, bytes: the shortest header of a JWT (RFC 7515),
/// `{"alg":"none"}`, has 19.
const JWT: usize = 16;
/// The base64 form of `-----BEGIN `, with which keys in kubeconfigs start.
const ENCODED_PEM: &[u8] = b"LS0tLS1CRUdJTi";
/// HTTP authentication schemes with one word of credentials.
const SCHEMES: [&str; 5] = ["basic", "bearer", "negotiate", "token", "apikey"];

/// Returns `bytes` with every secret replaced by [`HIDDEN`].
///
/// The result is at most four times as long, plus the length of [`HIDDEN`]: in the shortest secret, `a:b@`, three bytes are
/// replaced.
pub(crate) fn redact(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut scanner = Scanner { bytes, from: 0, no_at: 0 };
    let mut output = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match scanner.secret(at) {
            Some(secret) if bytes[secret.clone()] == *HIDDEN.as_bytes() => {
                // This secret was redacted before.
                at = secret.end.max(at + 1);
                output.extend_from_slice(&bytes[scanner.from..at]);
                scanner.from = at;
            }
            Some(secret) => {
                // Adjacent secrets are shown as one, as a second run would show them.
                let follows = secret.start == scanner.from && output.ends_with(HIDDEN.as_bytes());
                output.extend_from_slice(&bytes[scanner.from..secret.start]);
                if !follows {
                    output.extend_from_slice(HIDDEN.as_bytes());
                }
                at = secret.end;
                scanner.from = at;
            }
            None => at += 1,
        }
    }
    if scanner.from == 0 {
        return Cow::Borrowed(bytes);
    }
    output.extend_from_slice(&bytes[scanner.from..]);
    Cow::Owned(output)
}

/// Returns `text` with every secret replaced by [`HIDDEN`].
pub(crate) fn redact_text(text: &str) -> Cow<'_, str> {
    match redact(text.as_bytes()) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    /// Everything before it has been processed: no secret and no name starts there.
    from: usize,
    /// There is no `@` before this position in the current word. Keeps the search for `@` linear.
    no_at: usize,
}

impl Scanner<'_> {
    /// Returns the secret that is recognized by the byte at `at`, if any.
    fn secret(&mut self, at: usize) -> Option<Range<usize>> {
        let found = match self.bytes[at] {
            b':' if self.bytes[at..].starts_with(b"://") => self.user_information(at),
            b':' => self.account(at).or_else(|| self.named(at)),
            b'=' => self.named(at),
            b'-' => self.pem(at).or_else(|| self.flag(at)),
            b'`' | b'"' => self.unexpected(at),
            b'b' | b'B' if self.starts_word(at) => self.scheme(at).or_else(|| self.bootstrap_token(at)),
            b'e' if self.starts_word(at) => self.json_web_token(at).or_else(|| self.bootstrap_token(at)),
            b'L' if self.bytes[at..].starts_with(ENCODED_PEM) && self.starts_word(at) => {
                Some(at..self.run(at, is_base64))
            }
            b'a'..=b'z' | b'0'..=b'9' if self.starts_word(at) => self.bootstrap_token(at),
            _ => None,
        };
        // If a part of it is redacted already, only that part was the secret.
        found.filter(|secret| {
            !secret.is_empty() && (self.starts(secret.start, HIDDEN) || !self.is_done(secret.clone()))
        })
    }

    fn starts_word(&self, at: usize) -> bool {
        at == self.from || !is_base64_url(self.bytes[at - 1])
    }

    /// Returns the end of the run of bytes that `is_part` accepts.
    fn run(&self, from: usize, is_part: impl Fn(u8) -> bool) -> usize {
        self.bytes[from..].iter().position(|byte| !is_part(*byte)).map_or(self.bytes.len(), |end| from + end)
    }

    fn starts(&self, at: usize, text: &str) -> bool {
        let there = self.bytes.get(at..at + text.len());
        there.is_some_and(|there| there.eq_ignore_ascii_case(text.as_bytes()))
    }

    /// Finds the user information of `scheme://user:password@host`, between the slashes and the last `@` of the authority. Programs
    /// also quote invalid URLs, and texts may have been truncated before the `@`.
    fn user_information(&mut self, at: usize) -> Option<Range<usize>> {
        if at == self.from || !self.bytes[at - 1].is_ascii_alphanumeric() {
            return None;
        }
        let start = at + 3;
        let end = self.end_of_user_information(start)?;
        (!self.is_done(start..end)).then_some(start..end)
    }

    /// Returns whether a secret was redacted within a part, or at its end. The text had another meaning with that secret.
    fn is_done(&self, part: Range<usize>) -> bool {
        let end = self.bytes.len().min(part.end + 1);
        self.bytes[part.start..end].windows(HIDDEN.len()).any(|part| part == HIDDEN.as_bytes())
    }

    fn end_of_user_information(&mut self, start: usize) -> Option<usize> {
        let authority = self.run(start, |byte| is_url(byte) && !matches!(byte, b'/' | b'?' | b'#'));
        let known_none = start < self.no_at && authority <= self.no_at;
        let last = |end: usize| Some(start + self.bytes[start..end].iter().rposition(|byte| *byte == b'@')?);
        if !known_none && let Some(end) = last(authority) {
            return Some(end);
        }
        let colon = self.bytes[start..authority].iter().position(|byte| *byte == b':')?;
        let port = &self.bytes[start + colon + 1..authority];
        // Ignore the punctuation of the sentence that quotes the URL.
        let length = port.iter().rposition(u8::is_ascii_alphanumeric).map_or(0, |last| last + 1);
        if self.bytes[start] == b'[' || port[..length].iter().all(u8::is_ascii_digit) {
            return None;
        }
        if authority == self.bytes.len() {
            return Some(authority);
        }
        // The password may contain a slash. The search is limited because another URL may follow.
        let length = self.bytes[start..].iter().take(URL).take_while(|byte| is_url(**byte)).count();
        last(start + length)
    }

    /// Finds the account of `user:password@host`, but not in `image:tag@sha256:…`.
    fn account(&mut self, colon: usize) -> Option<Range<usize>> {
        let is_user =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-');
        if colon < self.no_at || colon == self.from || !is_user(self.bytes[colon - 1]) {
            return None;
        }
        let is_password = |byte: u8| is_url(byte) && !matches!(byte, b'/' | b'@');
        let end = self.run(colon + 1, is_password);
        if self.bytes.get(end) != Some(&b'@') {
            self.no_at = end;
            return None;
        }
        let is_host =
            self.bytes.get(end + 1).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'[')
                && !self.starts(end + 1, HIDDEN);
        let is_digest = self.starts(end + 1, "sha256:") || self.starts(end + 1, "sha512:");
        if !is_host || is_digest || end == colon + 1 || self.is_done(colon..end) {
            self.no_at = end;
            return None;
        }
        // The user is part of the credential, as in a URL.
        let length =
            self.bytes[self.from..colon].iter().rev().take(NAME).take_while(|byte| is_user(**byte)).count();
        Some(colon - length..end)
    }

    /// Finds the value after `name=` or `name:`, in a query, a header, an environment, JSON or YAML.
    fn named(&self, separator: usize) -> Option<Range<usize>> {
        let before = &self.bytes[self.from..separator];
        let back = |end: usize, most: usize, is_part: &dyn Fn(u8) -> bool| {
            end - before[..end].iter().rev().take(most).take_while(|byte| is_part(**byte)).count()
        };
        let blank = back(before.len(), BLANKS, &is_blank);
        let quote = back(blank, BLANKS, &|byte| matches!(byte, b'"' | b'\'' | b'\\'));
        let start = back(quote, NAME, &is_name);
        let name = &before[start..quote];
        let kind = kind(name)?;
        let is_quoted = quote < blank;
        let is_assigned = self.bytes[separator] == b'=';
        // `/run/secrets/token: permission denied` and `registry/secret:v1` are paths.
        if !is_assigned && !is_quoted && start > 0 && before[start - 1] == b'/' {
            return None;
        }
        let after = separator
            + 1
            + usize::from(matches!(self.bytes.get(separator + 1), Some(b'=' | b'>')) && is_assigned);
        let value = self.skip(after, is_blank, BLANKS);
        if kind == Kind::Authorization {
            let is_header = is_assigned
                || is_quoted
                || name[0].is_ascii_uppercase()
                || name.len() > "authorization".len();
            return self.credentials(value, is_header);
        }
        if kind == Kind::Basic {
            let found = self.quoted(value).unwrap_or_else(|| value..self.word(value));
            return is_basic(&self.bytes[found.clone()]).then_some(found);
        }
        if let Some(quoted) = self.quoted(value) {
            return Some(quoted);
        }
        // The names inside objects and lists are examined by themselves, and `token://` is a URL.
        let is_open = matches!(self.bytes.get(value), Some(b'{' | b'[')) && !self.starts(value, HIDDEN);
        if is_open || self.bytes[value..].starts_with(b"//") {
            return None;
        }
        let end = self.word(value);
        let is_prose = !is_assigned && !is_quoted && value > after && self.is_prose(value..end);
        let is_done = end > value && !self.starts(value, HIDDEN) && self.is_done(value..end);
        (!is_prose && !is_done).then_some(value..end)
    }

    /// Finds the value of `--token VALUE` on a command line.
    fn flag(&self, at: usize) -> Option<Range<usize>> {
        if !self.bytes[at..].starts_with(b"--") || (at > self.from && self.bytes[at - 1] == b'-') {
            return None;
        }
        let start = at + 2;
        let most = self.bytes.len().min(start + NAME);
        let end = start + self.bytes[start..most].iter().take_while(|byte| is_name(**byte)).count();
        let value = self.skip(end, is_blank, BLANKS);
        if value == end || kind(&self.bytes[start..end]) != Some(Kind::Secret) {
            return None;
        }
        let word = value..self.word(value);
        let text = &self.bytes[word.clone()];
        (!text.starts_with(b"-") && (text.len() >= 8 || looks_secret(text))).then_some(word)
    }

    /// Finds the credentials of a header after its name: with any scheme, in quotes, or in the brackets of Go's maps.
    fn credentials(&self, value: usize, is_header: bool) -> Option<Range<usize>> {
        let start = if self.starts(value, HIDDEN) { value } else { self.skip(value, |byte| byte == b'[', 1) };
        if let Some(quoted) = self.quoted(start) {
            return Some(quoted);
        }
        let scheme = self.word(start);
        if self.starts(start, HIDDEN) {
            return Some(start..scheme);
        }
        let is_long = scheme - start > PROSE;
        let next = self.skip(scheme, is_blank, BLANKS);
        if SCHEMES.iter().any(|known| self.starts(start, known) && known.len() == scheme - start) {
            let end = self.word(next);
            return (next > scheme && (is_header || looks_secret(&self.bytes[next..end])))
                .then_some(next..end);
        }
        if scheme == start || !is_long && (!is_header || self.bytes[scheme - 1] == b':') {
            return None;
        }
        // Other schemes may have several words of parameters.
        let end = self.run(start, |byte| !matches!(byte, b'\n' | b'\r' | b'"' | b'\'' | b']' | b'\\'));
        (!self.is_done(start..end)).then_some(start..end)
    }

    /// Finds the credentials of `Bearer TOKEN` and `Basic BASE64` anywhere in a text.
    fn scheme(&self, at: usize) -> Option<Range<usize>> {
        /// Words that follow the scheme in sentences.
        const WORDS: [&str; 5] = ["token", "tokens", "auth", "authentication", "authorization"];
        /// Parameters that follow the scheme in the challenges of servers.
        const PARAMETERS: [&str; 3] = ["realm=", "error=", "scope="];
        let is_bearer = self.starts(at, "bearer");
        if !is_bearer && !self.starts(at, "basic") {
            return None;
        }
        let end = at + if is_bearer { "bearer".len() } else { "basic".len() };
        let is_encoded = is_bearer && self.starts(end, "%20");
        let start = if is_encoded { end + "%20".len() } else { self.skip(end, is_blank, BLANKS) };
        if start == end || PARAMETERS.iter().any(|known| self.starts(start, known)) {
            return None;
        }
        let word = start..self.word(start);
        let text = &self.bytes[word.clone()];
        if !is_bearer {
            return is_basic(text).then_some(word);
        }
        let bare = text.strip_suffix(b":").or(text.strip_suffix(b".")).unwrap_or(text);
        let is_prose = WORDS.iter().any(|known| bare.eq_ignore_ascii_case(known.as_bytes()));
        let is_token = self.bytes[at] == b'B' && text.len() >= 8 || looks_secret(text);
        (is_token && !is_prose).then_some(word)
    }

    /// Finds a JWT: three base64url parts, of which the first is a JSON object (RFC 7519), or the beginning of one that was truncated.
    fn json_web_token(&self, at: usize) -> Option<Range<usize>> {
        let end = if self.bytes[at..].starts_with(b"eyJ") { self.run(at, is_base64) } else { at };
        (end - at >= JWT).then_some(at..end)
    }

    /// Finds a bootstrap token of kubeadm: six characters, a dot and sixteen characters.
    fn bootstrap_token(&self, at: usize) -> Option<Range<usize>> {
        let is_part = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let text = self.bytes.get(at..at + 23)?;
        let is_token = text[6] == b'.' && text[..6].iter().all(is_part) && text[7..].iter().all(is_part);
        let rest = &self.bytes[at + 23..];
        let is_longer = rest.first().is_some_and(|byte| is_base64_url(*byte)) && !rest.starts_with(b"-----");
        let goes_on = matches!(rest, [b'.', next, ..] if is_base64_url(*next) || *next == b'[');
        let is_part_of_name = at > self.from && self.bytes[at - 1] == b'.';
        (is_token && !is_longer && !goes_on && !is_part_of_name).then_some(at..at + 23)
    }

    /// Finds a PEM block, up to its end or to that of the text. If its beginning was truncated, it starts with its base64 text.
    fn pem(&self, at: usize) -> Option<Range<usize>> {
        const END: &[u8] = b"-----END ";
        let rest = &self.bytes[at..];
        let (start, end) = if rest.starts_with(b"-----BEGIN ") {
            match rest.windows(END.len()).position(|part| part == END) {
                Some(end) => (at, at + end),
                None => return Some(at..self.bytes.len()),
            }
        } else if rest.starts_with(END) {
            let is_part =
                |byte: &&u8| is_base64(**byte) || is_blank(**byte) || matches!(**byte, b'\n' | b'\r' | b'\\');
            let length = self.bytes[self.from..at].iter().rev().take_while(is_part).count();
            (self.skip(at - length, |byte| byte.is_ascii_whitespace(), length), at)
        } else {
            return None;
        };
        let label = end + END.len();
        let dashes = self.bytes[label..].iter().take(NAME).position(|byte| *byte == b'-');
        Some(start..dashes.map_or(self.bytes.len(), |dashes| self.run(label + dashes, |byte| byte == b'-')))
    }

    /// Finds the value that messages of serde quote: `invalid type: string "…", expected …`.
    fn unexpected(&self, at: usize) -> Option<Range<usize>> {
        const KINDS: [&[u8]; 5] = [b"string ", b"integer ", b"floating point ", b"character ", b"boolean "];
        let before = &self.bytes[self.from..at];
        let kind = KINDS.iter().find(|kind| before.ends_with(kind))?;
        let head = &before[..before.len() - kind.len()];
        let is_serde = head.ends_with(b"invalid type: ") || head.ends_with(b"invalid value: ");
        if is_serde { self.quoted(at) } else { None }
    }

    /// Returns the text inside the quotes that open at `at`, up to the end of the text if they do not close. Quotes within quoted
    /// text are escaped, once for each level.
    fn quoted(&self, at: usize) -> Option<Range<usize>> {
        let open = self.skip(at, |byte| byte == b'\\', BLANKS);
        let quote = *self.bytes.get(open).filter(|byte| matches!(byte, b'"' | b'\'' | b'`'))?;
        let level = open - at;
        let mut escapes = 0;
        for (end, byte) in self.bytes.iter().enumerate().skip(open + 1) {
            let closes = if level == 0 { escapes % 2 == 0 } else { escapes <= level };
            match *byte {
                b'\\' => escapes += 1,
                byte if byte == quote && closes => {
                    return Some(open + 1..end - escapes.min(level));
                }
                _ => escapes = 0,
            }
        }
        Some(open + 1..self.bytes.len())
    }

    /// Returns the end of an unquoted value.
    fn word(&self, from: usize) -> usize {
        if self.starts(from, HIDDEN) {
            return from + HIDDEN.len();
        }
        let ends = |byte: u8| byte.is_ascii_whitespace() || byte == 0 || b"\"'`,;&)}]<>\\".contains(&byte);
        self.run(from.min(self.bytes.len()), |byte| !ends(byte))
    }

    fn skip(&self, from: usize, is_part: impl Fn(u8) -> bool, most: usize) -> usize {
        let from = from.min(self.bytes.len());
        from + self.bytes[from..].iter().take(most).take_while(|byte| is_part(**byte)).count()
    }

    /// Returns whether an unquoted value is part of a sentence: `token: permission denied` is an error, `token: hunter2` a secret. A
    /// secret is alone on its line, or not an English word.
    fn is_prose(&self, word: Range<usize>) -> bool {
        let text = &self.bytes[word.clone()];
        if text.len() > PROSE || self.starts(word.start, HIDDEN) {
            return false;
        }
        if text.ends_with(b":") {
            return true;
        }
        let next = self.skip(word.end, is_blank, BLANKS);
        let is_alone =
            self.bytes.get(next).is_none_or(|byte| next == word.end || matches!(byte, b'\n' | b'\r'));
        !is_alone && !looks_secret(text)
    }
}

#[cfg(test)]
mod tests;
