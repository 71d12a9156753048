//! Parses CNI network configurations as libcni does.

use std::path::{Path, PathBuf};

use probe_engine::{ConfContent, cnis};
use serde_json::Value;

use crate::text::clean;

/// Longest error that is reported.
const WHY: usize = 200;
/// Longest name of a network or a plugin (`NAME_MAX`).
const NAME: usize = 255;
/// Longest path that is kept. `PATH_MAX` is 4096, but paths in configurations are far shorter.
const FILE: usize = 512;
/// Most plugins of one file that are read.
const PLUGINS: usize = 64;

/// Parses `bytes`, the content of the file `name`. A `.conflist` is a list of plugins, any other file a
/// single plugin; as in containerd, a list of plugins in a `.conf` is an error.
pub(super) fn parse(name: &str, bytes: &[u8]) -> ConfContent {
    match try_parse(name, bytes) {
        Ok((network, plugins)) => ConfContent::Network { network, plugins },
        Err(why) => ConfContent::Invalid { why: clean(why.as_bytes(), WHY) },
    }
}

fn try_parse(name: &str, bytes: &[u8]) -> Result<(String, Vec<String>), String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("the file is empty".to_owned());
    }
    // The recursion limit of the parser (128) bounds the stack for a megabyte of brackets.
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("not valid JSON: {error}"))?;
    let network = value.as_object().ok_or("not a JSON object")?;
    let network_name = network.get("name").and_then(Value::as_str).unwrap_or_default();
    let mut types = Vec::new();
    let mut ipams = Vec::new();
    if Path::new(name).extension().is_some_and(|extension| extension == "conflist") {
        if network_name.is_empty() {
            return Err("the list has no `name`".to_owned());
        }
        let plugins = network.get("plugins").ok_or("the list has no `plugins`")?;
        let plugins = plugins.as_array().ok_or("`plugins` is not a list")?;
        if plugins.is_empty() {
            return Err("`plugins` is empty".to_owned());
        }
        for plugin in plugins.iter().take(PLUGINS) {
            parse_plugin(plugin, &mut types, &mut ipams)?;
        }
    } else {
        parse_plugin(&value, &mut types, &mut ipams)?;
    }
    types.append(&mut ipams);
    Ok((clean(network_name.as_bytes(), NAME), types))
}

/// Returns the type of a meta-plugin and the file for which it waits before it does anything:
/// `readinessindicatorfile` of Multus, in a list, in a single plugin, or in the configuration of its daemon.
pub(super) fn readiness(bytes: &[u8]) -> Option<(String, String)> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    plugins.take(PLUGINS).chain([&value]).find_map(|plugin| {
        let file = plugin.get("readinessindicatorfile")?.as_str().filter(|file| file.starts_with('/'))?;
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or(cnis::multus_daemon().1);
        Some((clean(kind.as_bytes(), NAME), clean(file.as_bytes(), FILE)))
    })
}

/// Returns the directory in which host-local keeps the leases of the network: one named after the network,
/// below `dataDir`. `None` if the network does not use host-local.
pub(super) fn lease_dir(bytes: &[u8]) -> Option<PathBuf> {
    let (host_local, default) = cnis::host_local();
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let network = value.get("name")?.as_str().filter(|name| !name.contains('/') && *name != "..")?;
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let mut ipams = plugins.take(PLUGINS).chain([&value]).filter_map(|plugin| plugin.get("ipam"));
    let ipam = ipams.find(|ipam| ipam.get("type").and_then(Value::as_str) == Some(host_local))?;
    let dir = ipam.get("dataDir").and_then(Value::as_str).filter(|dir| !dir.is_empty()).unwrap_or(default);
    (dir.starts_with('/') && dir.len() <= FILE).then(|| Path::new(dir).join(network))
}

/// Returns the host links that plugins are configured to create for pods: the `bridge` of the reference
/// plugin.
pub(super) fn links(bytes: &[u8]) -> Vec<String> {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let names = plugins.take(PLUGINS).chain([&value]).filter_map(|plugin| plugin.get("bridge")?.as_str());
    names.filter(|name| !name.is_empty()).map(|name| clean(name.as_bytes(), NAME)).collect()
}

/// Adds the type of a plugin, and that of its IPAM plugin.
fn parse_plugin(plugin: &Value, types: &mut Vec<String>, ipams: &mut Vec<String>) -> Result<(), String> {
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

/// Returns the file name of a plugin. libcni rejects a type that is a path.
fn executable(kind: &str) -> Result<String, String> {
    if kind.contains('/') || kind.contains('\0') || kind == ".." || kind.len() > NAME {
        return Err(format!("the plugin type {kind:?} is not a file name"));
    }
    Ok(clean(kind.as_bytes(), NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(name: &str, text: &[u8]) -> String {
        match parse(name, text) {
            ConfContent::Invalid { why } => why,
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn bridge_of_a_list_and_of_a_plugin_is_a_link() {
        let list = br#"{"name":"x","plugins":[{"type":"bridge","bridge":"pods0"},{"type":"portmap"}]}"#;
        assert_eq!(links(list), ["pods0"]);
        assert_eq!(links(br#"{"name":"x","type":"bridge","bridge":"pods1"}"#), ["pods1"]);
        assert_eq!(links(br#"{"name":"x","type":"bridge","bridge":7}"#), [""; 0]);
    }

    #[test]
    fn plugins_of_a_list_precede_their_ipam_plugins() {
        let text = br#"{"cniVersion":"1.0.0","name":"pods","plugins":[
            {"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#;
        let want = ConfContent::Network {
            network: "pods".into(),
            plugins: vec!["bridge".into(), "portmap".into(), "host-local".into()],
        };
        assert_eq!(parse("10-pods.conflist", text), want);
    }

    #[test]
    fn reads_readiness_file_of_plugin_and_daemon() {
        let text =
            br#"{"name":"x","plugins":[{"type":"multus","readinessindicatorfile":"/run/x/10-y.conf"}]}"#;
        assert_eq!(readiness(text), Some(("multus".into(), "/run/x/10-y.conf".into())));
        let daemon = br#"{"readinessindicatorfile":"/run/flannel/subnet.env"}"#;
        assert_eq!(readiness(daemon), Some(("multus-shim".into(), "/run/flannel/subnet.env".into())));
        assert_eq!(readiness(br#"{"readinessindicatorfile":"no path"}"#), None);
        assert_eq!(readiness(b"["), None);
    }

    #[test]
    fn leases_of_host_local_are_below_its_data_directory() {
        let ipam = |ipam: &str| format!(r#"{{"name":"pods","type":"bridge","ipam":{ipam}}}"#);
        let dir = |text: &str| lease_dir(ipam(text).as_bytes());
        assert_eq!(dir(r#"{"type":"host-local"}"#), Some("/var/lib/cni/networks/pods".into()));
        assert_eq!(dir(r#"{"type":"host-local","dataDir":"/run/ipam"}"#), Some("/run/ipam/pods".into()));
        assert_eq!(dir(r#"{"type":"static"}"#), None);
    }

    #[test]
    fn reports_why_a_configuration_is_invalid() {
        assert_eq!(why("a.conf", b""), "the file is empty");
        assert_eq!(why("a.conf", b" \n"), "the file is empty");
        assert!(why("a.conf", b"{\"type\": \"br").starts_with("not valid JSON"));
        assert!(why("a.conf", &vec![b'['; 1 << 20]).starts_with("not valid JSON"));
        assert!(why("a.conf", &[0; 64]).starts_with("not valid JSON"));
        assert_eq!(why("a.conf", b"[]"), "not a JSON object");
        assert_eq!(why("a.conf", b"{}"), "a plugin has no `type`");
        assert_eq!(why("a.conflist", br#"{"plugins":[{"type":"bridge"}]}"#), "the list has no `name`");
        assert_eq!(why("a.conflist", br#"{"name":"x"}"#), "the list has no `plugins`");
        assert_eq!(why("a.conflist", br#"{"name":"x","plugins":{}}"#), "`plugins` is not a list");
        assert_eq!(why("a.conflist", br#"{"name":"x","plugins":[]}"#), "`plugins` is empty");
        assert!(why("a.conf", br#"{"type":"../../bin/sh"}"#).contains("is not a file name"));
        assert!(!why("a.conf", b"{\"type\":\"a/\\u001b[31m\"}").contains('\x1b'));
    }
}
