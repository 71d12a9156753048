//! A network configuration as libcni reads it.

use std::path::{Path, PathBuf};

use probe_engine::ConfContent;
use serde_json::Value;

use crate::text::clean;

/// Longest explanation.
const WHY: usize = 200;
/// Longest name of a network or a plugin (`NAME_MAX`).
const NAME: usize = 255;
/// Longest path (`PATH_MAX`, 4096) that anybody uses for a marker.
const FILE: usize = 512;
/// Most plugins of one file that are looked at.
const PLUGINS: usize = 64;

/// What `bytes`, the content of the file `name`, say. A `.conflist` is a list of plugins, everything else
/// one plugin; containerd takes a plugin list in a `.conf` for an error, as here.
pub(super) fn parse(name: &str, bytes: &[u8]) -> ConfContent {
    match try_parse(name, bytes) {
        Ok((network, plugins)) => ConfContent::Network { network, plugins },
        Err(why) => ConfContent::Invalid { why: clean(why.as_bytes(), WHY) },
    }
}

fn try_parse(name: &str, bytes: &[u8]) -> Result<(String, Vec<String>), String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty".to_owned());
    }
    // The parser's own recursion limit (128) stops a megabyte of brackets.
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON: {error}"))?;
    let network = value.as_object().ok_or("it is no JSON object")?;
    let title = network.get("name").and_then(Value::as_str).unwrap_or_default();
    let mut types = Vec::new();
    let mut ipams = Vec::new();
    if Path::new(name).extension().is_some_and(|extension| extension == "conflist") {
        if title.is_empty() {
            return Err("the list has no `name`".to_owned());
        }
        let plugins = network.get("plugins").ok_or("the list has no `plugins`")?;
        let plugins = plugins.as_array().ok_or("`plugins` is no list")?;
        if plugins.is_empty() {
            return Err("`plugins` is empty".to_owned());
        }
        for plugin in plugins.iter().take(PLUGINS) {
            one(plugin, &mut types, &mut ipams)?;
        }
    } else {
        one(&value, &mut types, &mut ipams)?;
    }
    types.append(&mut ipams);
    Ok((clean(title.as_bytes(), NAME), types))
}

/// The file that a meta-plugin waits for before it does anything, and the plugin: `readinessindicatorfile` of
/// Multus, in a list, in a configuration, or in its daemon's.
pub(super) fn readiness(bytes: &[u8]) -> Option<(String, String)> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    plugins.take(PLUGINS).chain([&value]).find_map(|plugin| {
        let file = plugin.get("readinessindicatorfile")?.as_str().filter(|file| file.starts_with('/'))?;
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or("multus-shim");
        Some((clean(kind.as_bytes(), NAME), clean(file.as_bytes(), FILE)))
    })
}

/// Where the network keeps the addresses that it gives out, when host-local does that: a directory of its own
/// below `dataDir`.
pub(super) fn lease_dir(bytes: &[u8]) -> Option<PathBuf> {
    const DEFAULT: &str = "/var/lib/cni/networks";
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let network = value.get("name")?.as_str().filter(|name| !name.contains('/') && *name != "..")?;
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let mut ipams = plugins.take(PLUGINS).chain([&value]).filter_map(|plugin| plugin.get("ipam"));
    let ipam = ipams.find(|ipam| ipam.get("type").and_then(Value::as_str) == Some("host-local"))?;
    let dir = ipam.get("dataDir").and_then(Value::as_str).filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT);
    (dir.starts_with('/') && dir.len() <= FILE).then(|| Path::new(dir).join(network))
}

/// Returns the host links that plugins are configured to create for pods: `bridge` of the reference plugin.
pub(super) fn links(bytes: &[u8]) -> Vec<String> {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let names = plugins.take(PLUGINS).chain([&value]).filter_map(|plugin| plugin.get("bridge")?.as_str());
    names.filter(|name| !name.is_empty()).map(|name| clean(name.as_bytes(), NAME)).collect()
}

fn one(plugin: &Value, types: &mut Vec<String>, ipams: &mut Vec<String>) -> Result<(), String> {
    let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        return Err("a plugin has no `type`".to_owned());
    }
    types.push(executable(kind)?);
    if let Some(ipam) = plugin.pointer("/ipam/type").and_then(Value::as_str)
        && !ipam.is_empty()
    {
        ipams.push(executable(ipam)?);
    }
    Ok(())
}

/// libcni refuses a type that is a path.
fn executable(kind: &str) -> Result<String, String> {
    if kind.contains('/') || kind.contains('\0') || kind == ".." || kind.len() > NAME {
        return Err(format!("the plugin type {kind:?} is no file name"));
    }
    Ok(clean(kind.as_bytes(), NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(name: &str, text: &[u8]) -> String {
        match parse(name, text) {
            ConfContent::Invalid { why } => why,
            other => panic!("taken for {other:?}"),
        }
    }

    #[test]
    fn the_bridge_of_a_list_and_of_a_plugin_is_a_link() {
        let list = br#"{"name":"x","plugins":[{"type":"bridge","bridge":"pods0"},{"type":"portmap"}]}"#;
        assert_eq!(links(list), ["pods0"]);
        assert_eq!(links(br#"{"name":"x","type":"bridge","bridge":"pods1"}"#), ["pods1"]);
        assert_eq!(links(br#"{"name":"x","type":"bridge","bridge":7}"#), [""; 0]);
    }

    #[test]
    fn a_list_names_its_plugins_then_their_ipam() {
        let text = br#"{"cniVersion":"1.0.0","name":"pods","plugins":[
            {"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#;
        let want = ConfContent::Network {
            network: "pods".into(),
            plugins: vec!["bridge".into(), "portmap".into(), "host-local".into()],
        };
        assert_eq!(parse("10-pods.conflist", text), want);
    }

    #[test]
    fn what_a_meta_plugin_waits_for_is_found() {
        let text =
            br#"{"name":"x","plugins":[{"type":"multus","readinessindicatorfile":"/run/x/10-y.conf"}]}"#;
        assert_eq!(readiness(text), Some(("multus".into(), "/run/x/10-y.conf".into())));
        let daemon = br#"{"readinessindicatorfile":"/run/flannel/subnet.env"}"#;
        assert_eq!(readiness(daemon), Some(("multus-shim".into(), "/run/flannel/subnet.env".into())));
        assert_eq!(readiness(br#"{"readinessindicatorfile":"no path"}"#), None);
        assert_eq!(readiness(b"["), None);
    }

    #[test]
    fn each_way_to_be_wrong_is_told() {
        assert_eq!(why("a.conf", b""), "it is empty");
        assert_eq!(why("a.conf", b" \n"), "it is empty");
        assert!(why("a.conf", b"{\"type\": \"br").starts_with("it is no JSON"));
        assert!(why("a.conf", &vec![b'['; 1 << 20]).starts_with("it is no JSON"));
        assert!(why("a.conf", &[0; 64]).starts_with("it is no JSON"));
        assert_eq!(why("a.conf", b"[]"), "it is no JSON object");
        assert_eq!(why("a.conf", b"{}"), "a plugin has no `type`");
        assert_eq!(why("a.conflist", br#"{"plugins":[{"type":"bridge"}]}"#), "the list has no `name`");
        assert_eq!(why("a.conflist", br#"{"name":"x"}"#), "the list has no `plugins`");
        assert_eq!(why("a.conflist", br#"{"name":"x","plugins":[]}"#), "`plugins` is empty");
        assert!(why("a.conf", br#"{"type":"../../bin/sh"}"#).contains("no file name"));
        assert!(!why("a.conf", b"{\"type\":\"a/\\u001b[31m\"}").contains('\x1b'));
    }
}
