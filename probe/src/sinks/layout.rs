//! Text layout: width, wrapping, colour.

use anstyle::{AnsiColor, Style};

/// Width if the terminal does not report one, in columns.
const WIDTH: usize = 80;

/// Returns the width of the output in columns, between 40 and 200: `COLUMNS`, otherwise the width of the terminal on standard
/// output, otherwise 80.
pub(crate) fn width() -> usize {
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || {
        let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(std::io::stdout())?;
        Some(usize::from(columns))
    };
    named.or_else(terminal).unwrap_or(WIDTH).clamp(40, 200)
}

/// Breaks `text` between words into lines of at most `width` characters.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("never empty");
            let used = line.chars().count();
            let space = usize::from(used > 0);
            if used + space + word.len() <= width {
                if space == 1 {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            if used > 0 {
                lines.push(String::new());
                continue;
            }
            // The word is longer than a line and is broken inside.
            line.extend(word.drain(..width));
            lines.push(String::new());
        }
    }
    lines
}

/// Shortens `text` to at most `width` characters by cutting its middle, where paths and addresses differ least.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let tail = width / 2;
    let head = width.saturating_sub(tail + 1);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// Formats a duration in nanoseconds: `62 µs`, `1.2 ms`, `34 ms`, `7.2 s`.
pub(crate) fn took(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..10_000_000 => format!("{}.{} ms", ns / 1_000_000, ns % 1_000_000 / 100_000),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{}.{} s", ns / 1_000_000_000, ns % 1_000_000_000 / 100_000_000),
    }
}

/// Colours by meaning. They are removed where the output is not a terminal.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// See [`BAD`].
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// See [`BAD`].
pub(crate) const UNSURE: Style = AnsiColor::Yellow.on_default().bold();
/// See [`BAD`].
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Wraps `text` in the escape sequences of a colour.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_fit_the_width() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn long_text_keeps_both_ends() {
        assert_eq!(shorten("abcdefgh", 8), "abcdefgh");
        assert_eq!(shorten("abcdefghi", 5), "ab…hi");
    }

    #[test]
    fn durations_have_a_suitable_unit() {
        assert_eq!(took(62_400), "62 µs");
        assert_eq!(took(1_210_000), "1.2 ms");
        assert_eq!(took(34_000_000), "34 ms");
        assert_eq!(took(7_249_000_000), "7.2 s");
    }
}
