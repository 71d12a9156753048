//! YAML of files and programs, any of which may be hostile.

use serde::de::DeserializeOwned;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Error, Options};

/// Deepest nesting. The deepest file that is read, a kubeconfig, has about ten levels.
const MAX_DEPTH: usize = 64;
/// Most values of a document, those of expanded aliases included. Files of 1 MiB are the largest that are read; a kubeconfig of
/// a hundred clusters has a few thousand values.
const MAX_VALUES: usize = 100_000;

/// Parses one document by the rules of YAML 1.2, into a value that is bounded by [`MAX_DEPTH`] and [`MAX_VALUES`].
///
/// Of several entries with the same key in a map, the last counts. Numbers with leading zeros or underscores are strings, and
/// `<<` is an ordinary key.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    serde_saphyr::from_slice_with_options(text, options())
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_VALUES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_VALUES },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &str) -> Option<Value> {
        parse(text.as_bytes()).ok()
    }

    #[test]
    fn scalars_have_the_types_of_yaml_1_2() {
        let text = "a: yes\nb: true\nc: 0755\nd: 1_000\ne: 10\nf: ~\ng: '10'\nh:\n<<: {i: 1}\n";
        let expected = json!({
            "a": "yes", "b": true, "c": "0755", "d": "1_000", "e": 10, "f": null, "g": "10", "h": null, "<<": {"i": 1}
        });
        assert_eq!(value(text), Some(expected));
        assert_eq!(value(""), Some(Value::Null));
        assert_eq!(value("{\"kind\": \"Config\"}"), Some(json!({"kind": "Config"})));
    }

    #[test]
    fn last_of_duplicate_keys_counts() {
        assert_eq!(value("a: 1\nb: 2\na: 3\n"), Some(json!({"a": 3, "b": 2})));
        let many: String = (0..200_000).map(|_| "a: 1\n").collect();
        assert_eq!(value(&many), None);
    }

    #[test]
    fn nested_aliases_are_bounded() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert_eq!(value(&bomb), None);
        assert_eq!(value("a: &a [x, y]\nb: *a\n"), Some(json!({"a": ["x", "y"], "b": ["x", "y"]})));
        assert_eq!(value("a: &a [*a]\n"), None);
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(value(&format!("{}{}", "[".repeat(50), "]".repeat(50))).is_some());
        for depth in [200, 500_000] {
            assert_eq!(value(&"[".repeat(depth)), None);
            assert_eq!(value(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))), None);
            assert_eq!(value(&format!("{}x", "- ".repeat(depth))), None);
            assert_eq!(value(&"{a: ".repeat(depth)), None);
        }
    }

    #[test]
    fn broken_documents_are_errors() {
        for text in [": : :\n\t", "a: [1", "a: 1\n---\nb: 2\n", "%", "\u{0}", "a: *missing", "&a : *a : *a"] {
            assert_eq!(value(text), None, "{text:?}");
        }
        assert!(parse::<Value>(&[0xff, 0xfe, 0x00]).is_err());
    }
}
