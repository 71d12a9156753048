//! How releases of containerd interpret the same files: which tables they read, how they migrate files of an older version,
//! and how they merge imported files.
//!
//! Based on containerd 1.7.27 and 2.3.4: cmd/containerd/server/config/config.go, plugins/cri/{runtime,images}/plugin.go;
//! services/server/config/config.go of 1.7.

use std::path::PathBuf;

use toml::{Table, Value};

/// Tables of the CRI plugin in files of version 1, of version 2, and since version 3.
const CRI_V1: &str = "cri";
const CRI_V2: &str = "io.containerd.grpc.v1.cri";
pub(super) const RUNTIME: &str = "io.containerd.cri.v1.runtime";
pub(super) const IMAGES: &str = "io.containerd.cri.v1.images";
/// All tables of the CRI plugin.
pub(super) const TABLES: [&str; 4] = [CRI_V1, CRI_V2, RUNTIME, IMAGES];

/// A file and its content.
pub(super) type File = (PathBuf, Table);

/// Returns the plugin configuration that each release derives from the files, under the table names of version 3. Releases
/// that reject the files are omitted.
pub(super) fn readings(files: &[File]) -> Vec<Table> {
    let readings = [containerd_1(files), containerd_2_0(files), containerd_2_3(files)];
    readings.into_iter().flatten().collect()
}

/// Returns whether only containerd 2 can use these files: a file has version 3 or later, or the files contain tables of
/// version 3 and none of an earlier version, as on AKS.
pub(super) fn require_containerd_2(files: &[File]) -> bool {
    let has = |(_, config): &File, names: &[&str]| names.iter().any(|name| plugin(config, name).is_some());
    files.iter().any(|(_, config)| version(config).is_some_and(|version| version > 2))
        || files.iter().any(|file| has(file, &[RUNTIME, IMAGES]))
            && !files.iter().any(|file| has(file, &[CRI_V1, CRI_V2]))
}

/// Interprets the files like containerd 1: a table of an imported file replaces the whole table of the same name.
fn containerd_1(files: &[File]) -> Option<Table> {
    if require_containerd_2(files) {
        return None;
    }
    let mut plugins = Table::new();
    for (_, config) in files {
        let name = if version(config)? < 2 { CRI_V1 } else { CRI_V2 };
        if let Some(table) = plugin(config, name) {
            plugins.insert(CRI_V2.to_owned(), table.clone());
        }
    }
    migrate(&mut plugins);
    Some(plugins)
}

/// Interprets the files like containerd 2.0 to 2.2: the files are merged, then migrated if the last one has version 2. These
/// releases ignore the plugins in files of version 1, so files of version 1 are assumed to belong to another release.
fn containerd_2_0(files: &[File]) -> Option<Table> {
    let (mut plugins, mut last) = (Table::new(), 3);
    for (_, config) in files {
        // An empty table stands for a missing file, which has no version.
        last = match version(config)? {
            _ if config.is_empty() => last,
            version @ (2 | 3) => version,
            _ => return None,
        };
        merge(&mut plugins, &plugins_of(config));
    }
    if last == 2 {
        migrate(&mut plugins);
    }
    Some(plugins)
}

/// Interprets the files like containerd 2.3 and later: each file is migrated separately, including those of version 3.
fn containerd_2_3(files: &[File]) -> Option<Table> {
    let mut plugins = Table::new();
    for (_, config) in files {
        let mut own = plugins_of(config);
        if version(config)? < 4 {
            migrate(&mut own);
        } else if version(config)? > 4 {
            return None;
        }
        merge(&mut plugins, &own);
    }
    Some(plugins)
}

/// Returns the version of a file; `None` if no release accepts it.
fn version(config: &Table) -> Option<i64> {
    config.get("version").map_or(Some(1), Value::as_integer).filter(|version| *version >= 0)
}

fn plugin<'a>(config: &'a Table, name: &str) -> Option<&'a Value> {
    config.get("plugins")?.get(name)
}

/// Returns the plugins of a file; those of version 1 under the table names of version 2.
fn plugins_of(config: &Table) -> Table {
    let mut plugins = config.get("plugins").and_then(Value::as_table).cloned().unwrap_or_default();
    if version(config).is_some_and(|version| version < 2)
        && let Some(first) = plugins.remove(CRI_V1)
    {
        plugins.insert(CRI_V2.to_owned(), first);
    }
    plugins
}

/// Merges tables key by key; other values are replaced.
fn merge(to: &mut Table, from: &Table) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            (Some(Value::Table(to)), Value::Table(from)) => merge(to, from),
            _ => drop(to.insert(key.clone(), value.clone())),
        }
    }
}

/// Moves the table of version 2 to those of version 3. Existing values of the latter take precedence, except over `bin_dir` and
/// `sandbox_image`.
fn migrate(plugins: &mut Table) {
    let Some(Value::Table(mut old)) = plugins.remove(CRI_V2) else { return };
    let (mut runtime, mut images) = (take_table(plugins, RUNTIME), take_table(plugins, IMAGES));
    if let Some(image) = old.remove("sandbox_image") {
        let mut pinned = take_table(&mut images, "pinned_images");
        pinned.insert("sandbox".to_owned(), image);
        images.insert("pinned_images".to_owned(), Value::Table(pinned));
    }
    for part in ["cni", "containerd"] {
        let (mut own, mut to) = (take_table(&mut old, part), take_table(&mut runtime, part));
        if let Some(dir) = own.remove("bin_dir") {
            to.insert("bin_dirs".to_owned(), Value::Array(vec![dir]));
        }
        insert_missing(&mut to, own);
        runtime.insert(part.to_owned(), Value::Table(to));
    }
    insert_missing(&mut runtime, old);
    plugins.insert(RUNTIME.to_owned(), Value::Table(runtime));
    plugins.insert(IMAGES.to_owned(), Value::Table(images));
}

/// Inserts the values whose keys are missing.
fn insert_missing(to: &mut Table, from: Table) {
    for (key, value) in from {
        to.entry(key).or_insert(value);
    }
}

/// Removes a table from its parent and returns it; an empty table if there is none.
fn take_table(parent: &mut Table, name: &str) -> Table {
    match parent.remove(name) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}
