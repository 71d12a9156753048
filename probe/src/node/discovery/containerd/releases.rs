//! What releases of containerd make of the same files: which tables they read, how they migrate a file of an older version,
//! and how they merge what a file imports.
//!
//! As of containerd 1.7.27 and 2.3.4: cmd/containerd/server/config/config.go, plugins/cri/{runtime,images}/plugin.go;
//! services/server/config/config.go of 1.7.

use std::path::PathBuf;

use toml::{Table, Value};

/// Tables of the CRI plugin in files of version 1, of version 2, and since version 3.
const FIRST: &str = "cri";
const SECOND: &str = "io.containerd.grpc.v1.cri";
pub(super) const RUNTIME: &str = "io.containerd.cri.v1.runtime";
pub(super) const IMAGES: &str = "io.containerd.cri.v1.images";
/// All of them.
pub(super) const TABLES: [&str; 4] = [FIRST, SECOND, RUNTIME, IMAGES];

/// A file and its content.
pub(super) type File = (PathBuf, Table);

/// What each release that accepts these files makes of their plugins, under the names of version 3.
pub(super) fn readings(files: &[File]) -> Vec<Table> {
    let readings = [one(files), merged_then_migrated(files), migrated_then_merged(files)];
    readings.into_iter().flatten().collect()
}

/// Returns whether only containerd 2 reads these files: their version, or that they have no table that an earlier one knows,
/// as AKS writes them.
pub(super) fn are_of_2(files: &[File]) -> bool {
    let has = |(_, config): &File, names: &[&str]| names.iter().any(|name| plugin(config, name).is_some());
    files.iter().any(|(_, config)| version(config).is_some_and(|version| version > 2))
        || files.iter().any(|file| has(file, &[RUNTIME, IMAGES]))
            && !files.iter().any(|file| has(file, &[FIRST, SECOND]))
}

/// containerd 1: a table of an imported file replaces the whole one of the same name.
fn one(files: &[File]) -> Option<Table> {
    if are_of_2(files) {
        return None;
    }
    let mut plugins = Table::new();
    for (_, config) in files {
        let name = if version(config)? < 2 { FIRST } else { SECOND };
        if let Some(table) = plugin(config, name) {
            plugins.insert(SECOND.to_owned(), table.clone());
        }
    }
    migrate(&mut plugins);
    Some(plugins)
}

/// containerd 2.0 to 2.2: the files are merged, and migrated if the last one is of version 2. These releases ignore the plugins
/// in files of version 1, which are taken for files of another release.
fn merged_then_migrated(files: &[File]) -> Option<Table> {
    let (mut plugins, mut last) = (Table::new(), 3);
    for (_, config) in files {
        // A missing file is read as an empty one, without a version.
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

/// containerd since 2.3: each file is migrated by itself, one of version 3 as well.
fn migrated_then_merged(files: &[File]) -> Option<Table> {
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

/// The version of a file; `None` for one that no containerd accepts.
fn version(config: &Table) -> Option<i64> {
    config.get("version").map_or(Some(1), Value::as_integer).filter(|version| *version >= 0)
}

fn plugin<'a>(config: &'a Table, name: &str) -> Option<&'a Value> {
    config.get("plugins")?.get(name)
}

/// The plugins of a file; those of version 1 under the names of version 2.
fn plugins_of(config: &Table) -> Table {
    let mut plugins = config.get("plugins").and_then(Value::as_table).cloned().unwrap_or_default();
    if version(config).is_some_and(|version| version < 2)
        && let Some(first) = plugins.remove(FIRST)
    {
        plugins.insert(SECOND.to_owned(), first);
    }
    plugins
}

/// Tables are merged key by key, anything else is replaced.
fn merge(to: &mut Table, from: &Table) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            (Some(Value::Table(to)), Value::Table(from)) => merge(to, from),
            _ => drop(to.insert(key.clone(), value.clone())),
        }
    }
}

/// Moves the table of version 2 to those of version 3. What stands there already wins, but for `bin_dir` and
/// `sandbox_image`.
fn migrate(plugins: &mut Table) {
    let Some(Value::Table(mut old)) = plugins.remove(SECOND) else { return };
    let (mut runtime, mut images) = (take(plugins, RUNTIME), take(plugins, IMAGES));
    if let Some(image) = old.remove("sandbox_image") {
        let mut pinned = take(&mut images, "pinned_images");
        pinned.insert("sandbox".to_owned(), image);
        images.insert("pinned_images".to_owned(), Value::Table(pinned));
    }
    for part in ["cni", "containerd"] {
        let (mut own, mut to) = (take(&mut old, part), take(&mut runtime, part));
        if let Some(dir) = own.remove("bin_dir") {
            to.insert("bin_dirs".to_owned(), Value::Array(vec![dir]));
        }
        add(&mut to, own);
        runtime.insert(part.to_owned(), Value::Table(to));
    }
    add(&mut runtime, old);
    plugins.insert(RUNTIME.to_owned(), Value::Table(runtime));
    plugins.insert(IMAGES.to_owned(), Value::Table(images));
}

/// Adds what is not there yet.
fn add(to: &mut Table, from: Table) {
    for (key, value) in from {
        to.entry(key).or_insert(value);
    }
}

/// Takes a table out of another one; an empty one where there is none.
fn take(parent: &mut Table, name: &str) -> Table {
    match parent.remove(name) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}
