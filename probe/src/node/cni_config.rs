//! Reads the CNI configuration as a runtime does, and reports changes of it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caps::Capability;
use inotify::{Inotify, WatchMask};
use probe_common::COMM_LEN;
use probe_engine::{CniConfig, ConfContent, ConfFile, Gap, Observation, UnusablePlugin, WaitsFor, cnis};

use super::{cni_parse, file, plugin_file, processes};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::privileges;
use crate::settings::Settings;
use crate::text::clean;

/// Most files that are read; runtimes use the first one.
const FILES: usize = 256;
/// Longest file name (`NAME_MAX`).
const NAME: usize = 255;
/// Longest path that is reported.
const PATH: usize = 256;
/// Delay between a change and the next read, because an installer writes several files. The budget from a
/// change to the trace is 100 ms.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Interval between two reads without a change: inotify does not report changes that are made through another
/// mount or on the server of a network file system.
const INTERVAL: Duration = Duration::from_secs(30);
/// The same while a meta-plugin waits for a file.
const WAITING_INTERVAL: Duration = Duration::from_secs(1);
/// The same while the directories cannot be watched.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(2);
/// A read that takes longer is a gap: 256 files of the largest size take 5 s on a slow machine.
const SLOW_READ: Duration = Duration::from_secs(10);
/// Signal of the gap while the directories cannot be watched.
const SIGNAL: &str = "cni.config";
/// Signal of the gap while a read takes too long.
const READ_SIGNAL: &str = "cni.config.read";

/// Returns a configuration with only the directories filled in.
fn dirs(settings: &Settings) -> CniConfig {
    let (conf, bin) = (settings.cni.conf(), settings.cni.bin());
    CniConfig {
        dir: shown(&conf),
        max_files: settings.cni.max_files().value,
        bin_dirs: bin.iter().map(|dir| shown(dir)).collect(),
        ..CniConfig::default()
    }
}

/// Returns a path as it is reported.
fn shown(path: &Path) -> String {
    clean(path.as_os_str().as_bytes(), PATH)
}

/// Returns a configuration that could not be read.
pub(crate) fn unread(settings: &Settings, why: &str) -> CniConfig {
    CniConfig { dir_error: Some(why.to_owned()), ..dirs(settings) }
}

/// Reads the configuration and checks its plugins. Takes seconds for many large files, and blocks while their
/// disk blocks.
pub(crate) fn read(settings: &Settings) -> CniConfig {
    let (conf, bin) = (settings.cni.conf(), settings.cni.bin());
    let dir = settings.on_host(&conf);
    let mut config = dirs(settings);
    let mut denied = None;
    let mut note = |path: &Path, error: &io::Error| {
        if file::is_own(error) {
            denied.get_or_insert_with(|| denial(path, error));
        }
    };
    match names(&dir) {
        Ok(names) => {
            for name in &names {
                // Read only once, so that everything is taken from the same content if the file is replaced
                // meanwhile.
                let path = conf.join(name);
                let content = file::read(&settings.on_host(&path));
                match &content {
                    Ok(bytes) => {
                        config.waits_for.extend(waits_for(settings, bytes));
                        config.links.extend(cni_parse::links(bytes));
                    }
                    Err(error) => note(&path, error),
                }
                config.files.push(conf_file(name, content));
            }
            let (daemon, _) = cnis::multus_daemon();
            let daemon = file::read(&settings.on_host(&conf.join(daemon))).ok();
            config.waits_for.extend(daemon.and_then(|bytes| waits_for(settings, &bytes)));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => config.dir_missing = true,
        Err(error) => {
            note(&conf, &error);
            config.dir_error = Some(error.to_string());
        }
    }
    let mut wanted: BTreeSet<&str> = BTreeSet::from([cnis::LOOPBACK]);
    for conf in &config.files {
        if let ConfContent::Network { plugins, .. } = &conf.content {
            wanted.extend(plugins.iter().map(String::as_str).filter(|plugin| !cnis::is_built_in(plugin)));
        }
    }
    let (mut missing, mut unusable) = (Vec::new(), Vec::new());
    for plugin in wanted {
        // As in libcni, the first regular file is used, whatever its mode.
        let is_file = |path: &PathBuf| match fs::metadata(settings.on_host(path)) {
            Ok(metadata) => metadata.is_file(),
            Err(error) => {
                note(path, &error);
                false
            }
        };
        let Some(path) = bin.iter().map(|dir| dir.join(plugin)).find(is_file) else {
            missing.push(plugin.to_owned());
            continue;
        };
        if let Some(why) = plugin_file::unusable(settings, &settings.on_host(&path)) {
            unusable.push(UnusablePlugin { plugin: plugin.to_owned(), path: shown(&path), why });
        }
    }
    (config.missing_plugins, config.unusable_plugins) = (missing, unusable);
    config.denied = denied;
    config
}

/// Returns the text of a gap: why the agent cannot read what the runtime can.
fn denial(path: &Path, error: &io::Error) -> String {
    let lacks = privileges::lacks(Capability::CAP_DAC_READ_SEARCH);
    let why = if lacks { "; CAP_DAC_READ_SEARCH is missing" } else { "" };
    format!("{} cannot be read: {error}{why}", shown(path))
}

/// Returns the names of the installed plugins, as the kernel truncates them, for kernels on which a plugin
/// can be recognised only by its name.
pub(crate) fn plugin_names(settings: &Settings) -> Vec<[u8; COMM_LEN]> {
    let dirs = settings.cni.bin();
    let dirs = dirs.iter().filter_map(|dir| fs::read_dir(settings.on_host(dir)).ok());
    let names: BTreeSet<_> = dirs
        .flatten()
        .flatten()
        .filter(|entry| is_executable(&entry.path()))
        .map(|entry| processes::comm(entry.file_name().as_bytes()))
        .collect();
    names.into_iter().collect()
}

/// Returns the file names of configurations, in the order in which runtimes read them.
fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if ConfFile::is_read(&name.to_string_lossy()) {
            names.insert(name);
            if names.len() > FILES {
                names.pop_last();
            }
        }
    }
    Ok(names.into_iter().collect())
}

fn conf_file(name: &OsStr, content: io::Result<Vec<u8>>) -> ConfFile {
    let shown = clean(name.as_bytes(), NAME);
    match content {
        Ok(bytes) => ConfFile {
            size: bytes.len() as u64,
            content: cni_parse::parse(&name.to_string_lossy(), &bytes),
            name: shown,
        },
        Err(error) => {
            let why = if error.kind() == io::ErrorKind::NotFound {
                "dangling symbolic link".to_owned()
            } else {
                error.to_string()
            };
            ConfFile { name: shown, size: 0, content: ConfContent::Unreadable { why } }
        }
    }
}

fn waits_for(settings: &Settings, bytes: &[u8]) -> Option<WaitsFor> {
    let (plugin, file) = cni_parse::readiness(bytes)?;
    let present = settings.on_host(Path::new(&file)).exists();
    Some(WaitsFor { plugin, file, present })
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Sends the configuration whenever it differs from the last one sent. Runs forever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    // The snapshot at start reports the state at start; here it is sent only if it has changed since.
    let Some(mut last) = read_blocking(&settings, &feed).await else { return };
    loop {
        let shared = Arc::clone(&settings);
        let added = tokio::task::spawn_blocking(move || Watches::add(&shared)).await;
        match added.map_err(io::Error::other).flatten().and_then(Watches::start) {
            Ok(mut watches) => {
                // The directory may have changed between the last read and the watches.
                if !send_if_changed(&settings, &feed, &mut last).await {
                    return;
                }
                // Watches end when their directory is removed or replaced, so that they are added by path
                // again every time. A file for which a meta-plugin waits may be in an unwatched directory and
                // is polled.
                let is_waiting = last.waits_for.iter().any(|waits| !waits.present);
                let interval = if is_waiting { WAITING_INTERVAL } else { INTERVAL };
                let dirs_changed = settings.cni.changed();
                tokio::select! {
                    () = watches.changed() => {}
                    () = dirs_changed => {}
                    () = tokio::time::sleep(interval) => {}
                }
                tokio::time::sleep(DEBOUNCE).await;
            }
            Err(error) => {
                let why = format!(
                    "cannot watch {}: {error}; reading it every {} s instead",
                    settings.cni.conf().display(),
                    UNWATCHED_INTERVAL.as_secs()
                );
                if !send(&feed, Observation::Gap(Gap { signal: SIGNAL.to_owned(), why, blind: false })).await
                {
                    return;
                }
                tokio::time::sleep(UNWATCHED_INTERVAL).await;
            }
        }
        if !send_if_changed(&settings, &feed, &mut last).await {
            return;
        }
    }
}

/// Reads the configuration on a thread that may block, and reports a gap while that takes too long. Returns
/// `None` if the receiver of the feed is closed.
async fn read_blocking(settings: &Arc<Settings>, feed: &Feed) -> Option<CniConfig> {
    let shared = Arc::clone(settings);
    let mut reading = tokio::task::spawn_blocking(move || read(&shared));
    if let Ok(config) = tokio::time::timeout(SLOW_READ, &mut reading).await {
        return config.ok();
    }
    let dir = settings.cni.conf();
    let why = format!("reading {} takes longer than {} s", dir.display(), SLOW_READ.as_secs());
    let signal = READ_SIGNAL.to_owned();
    if !send(feed, Observation::Gap(Gap { signal: signal.clone(), why, blind: false })).await {
        return None;
    }
    let config = reading.await.ok()?;
    send(feed, Observation::GapClosed { signal }).await.then_some(config)
}

/// Returns false if the receiver of the feed is closed.
async fn send_if_changed(settings: &Arc<Settings>, feed: &Feed, last: &mut CniConfig) -> bool {
    let Some(config) = read_blocking(settings, feed).await else { return false };
    if config == *last {
        return true;
    }
    last.clone_from(&config);
    send(feed, Observation::CniConfig(config)).await
}

/// Returns false if the receiver of the feed is closed.
async fn send(feed: &Feed, observation: Observation) -> bool {
    feed.send(Seen { at: clock::now(), observation }).await.is_ok()
}

/// inotify(7) watches of the configuration directory, the plugin directories, and their parents, which show
/// the creation or replacement of a directory.
struct Watches {
    stream: inotify::EventStream<[u8; 4096]>,
}

impl Watches {
    /// Adds the watches. Blocks while the disk of a directory blocks.
    fn add(settings: &Settings) -> io::Result<Inotify> {
        let inotify = Inotify::init()?;
        let mut dirs = vec![settings.on_host(&settings.cni.conf())];
        dirs.extend(settings.cni.bin().iter().map(|dir| settings.on_host(dir)));
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let appear = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
        for dir in &dirs {
            // A directory that does not exist cannot be watched: its nearest ancestor is watched instead.
            let _ = inotify.watches().add(dir, mask | WatchMask::ONLYDIR);
            if let Some(parent) = dir.ancestors().skip(1).find(|parent| parent.is_dir())
                // `/` and its children change all the time but do not lose these directories.
                && (!dir.is_dir() || parent.components().count() > 2)
            {
                let _ = inotify.watches().add(parent, appear);
            }
        }
        Ok(inotify)
    }

    fn start(inotify: Inotify) -> io::Result<Self> {
        Ok(Self { stream: inotify.into_event_stream([0; 4096])? })
    }

    async fn changed(&mut self) {
        use futures_util::StreamExt as _;

        let _ = self.stream.next().await;
    }
}
