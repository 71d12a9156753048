//! The CNI configuration as a runtime would find it now, and when it changes.

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

/// Most files that are looked at; runtimes use the first one.
const FILES: usize = 256;
/// `NAME_MAX`
const NAME: usize = 255;
/// How long changes may gather before the directory is read again: an installer writes several files. The
/// budget from a change to the trace is 100 ms.
const GATHER: Duration = Duration::from_millis(20);
/// How often the directory is read when nothing is reported: watches do not see what happens on another
/// side of a mount.
const AGAIN: Duration = Duration::from_secs(30);
/// The same while somebody waits for a file.
const WAITED_FOR: Duration = Duration::from_secs(1);
/// The same while it cannot be watched.
const POLL: Duration = Duration::from_secs(2);
/// A read that takes longer is a gap: 256 files of the largest size take 5 s on a slow machine.
const LATE: Duration = Duration::from_secs(10);
/// What a gap is about: the watch, and the read.
const SIGNAL: &str = "cni.config";
const LATE_SIGNAL: &str = "cni.config.read";

/// The directories, before anything in them is read.
fn dirs(settings: &Settings) -> CniConfig {
    let (conf, bin) = (settings.cni.conf(), settings.cni.bin());
    CniConfig {
        dir: clean(conf.as_os_str().as_bytes(), 256),
        max_files: settings.cni.max_files().value,
        bin_dirs: bin.iter().map(|dir| clean(dir.as_os_str().as_bytes(), 256)).collect(),
        ..CniConfig::default()
    }
}

/// Returns a configuration that could not be read.
pub(crate) fn unread(settings: &Settings, why: &str) -> CniConfig {
    CniConfig { dir_error: Some(why.to_owned()), ..dirs(settings) }
}

/// Reads everything now. Takes seconds where there are many large files, and blocks where their disk does.
pub(crate) fn read(settings: &Settings) -> CniConfig {
    let (conf, bin) = (settings.cni.conf(), settings.cni.bin());
    let dir = settings.on_host(&conf);
    let mut config = dirs(settings);
    let mut denied = None;
    let mut note = |path: &Path, error: &io::Error| {
        if file::is_own(error) {
            denied.get_or_insert_with(|| unpermitted(path, error));
        }
    };
    match names(&dir) {
        Ok(names) => {
            for name in &names {
                // Once: a file that is replaced meanwhile must not be two.
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
            let daemon = file::read(&settings.on_host(&conf.join("multus.d/daemon-config.json"))).ok();
            config.waits_for.extend(daemon.and_then(|bytes| waits_for(settings, &bytes)));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => config.dir_missing = true,
        Err(error) => {
            note(&conf, &error);
            config.dir_error = Some(error.to_string());
        }
    }
    let mut wanted: BTreeSet<&str> = BTreeSet::from(["loopback"]);
    for conf in &config.files {
        if let ConfContent::Network { plugins, .. } = &conf.content {
            wanted.extend(plugins.iter().map(String::as_str).filter(|plugin| !cnis::is_built_in(plugin)));
        }
    }
    let (mut missing, mut unusable) = (Vec::new(), Vec::new());
    for plugin in wanted {
        // As libcni looks: the first regular file, whatever its mode.
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
            let path = clean(path.as_os_str().as_bytes(), 256);
            unusable.push(UnusablePlugin { plugin: plugin.to_owned(), path, why });
        }
    }
    (config.missing_plugins, config.unusable_plugins) = (missing, unusable);
    config.denied = denied;
    config
}

/// Why the agent cannot read what the runtime can: for a gap.
fn unpermitted(path: &Path, error: &io::Error) -> String {
    let path = clean(path.as_os_str().as_bytes(), 256);
    let lacks = privileges::lacks(Capability::CAP_DAC_READ_SEARCH);
    let why = if lacks { "; CAP_DAC_READ_SEARCH is missing" } else { "" };
    format!("{path} cannot be read: {error}{why}")
}

/// Names of the plugins that are installed, as the kernel cuts them: for kernels where a plugin can only be
/// known by its name.
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

/// File names in the order in which runtimes read them.
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
                "it is a link that points nowhere".to_owned()
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

/// Sends the configuration whenever it differs from the last one sent; runs for ever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    // The state at start is read by the snapshot; it is sent again only when it has changed since.
    let Some(mut last) = read_elsewhere(&settings, &feed).await else { return };
    loop {
        let shared = Arc::clone(&settings);
        let made = tokio::task::spawn_blocking(move || Watches::add(&shared)).await;
        let every = match made.map_err(io::Error::other).flatten().and_then(Watches::start) {
            Ok(mut watches) => {
                // Between the last read and the watches something may have changed.
                if !send_if_new(&settings, &feed, &mut last).await {
                    return;
                }
                // Gone or replaced directories end the watches; they are made anew from their paths.
                // What is waited for may lie anywhere: who waits looks once a second, too.
                let waits = last.waits_for.iter().any(|waits| !waits.present);
                let again = if waits { WAITED_FOR } else { AGAIN };
                let elsewhere = settings.cni.changed();
                tokio::select! {
                    () = watches.changed() => {}
                    () = elsewhere => {}
                    () = tokio::time::sleep(again) => {}
                }
                tokio::time::sleep(GATHER).await;
                Duration::ZERO
            }
            Err(error) => {
                let why =
                    format!("watch {}: {error}; it is read every 2 s instead", settings.cni.conf().display());
                if !tell(&feed, Observation::Gap(Gap { signal: SIGNAL.to_owned(), why, blind: false })).await
                {
                    return;
                }
                POLL
            }
        };
        tokio::time::sleep(every).await;
        if !send_if_new(&settings, &feed, &mut last).await {
            return;
        }
    }
}

/// Reads on a thread that may block, and reports a gap for as long as that takes too long. `None` when nobody listens.
async fn read_elsewhere(settings: &Arc<Settings>, feed: &Feed) -> Option<CniConfig> {
    let shared = Arc::clone(settings);
    let mut reading = tokio::task::spawn_blocking(move || read(&shared));
    if let Ok(config) = tokio::time::timeout(LATE, &mut reading).await {
        return config.ok();
    }
    let dir = settings.cni.conf();
    let why = format!("reading {} takes longer than {} s", dir.display(), LATE.as_secs());
    let signal = LATE_SIGNAL.to_owned();
    if !tell(feed, Observation::Gap(Gap { signal: signal.clone(), why, blind: false })).await {
        return None;
    }
    let config = reading.await.ok()?;
    tell(feed, Observation::GapClosed { signal }).await.then_some(config)
}

/// False when nobody listens any more.
async fn send_if_new(settings: &Arc<Settings>, feed: &Feed, last: &mut CniConfig) -> bool {
    let Some(config) = read_elsewhere(settings, feed).await else { return false };
    if config == *last {
        return true;
    }
    last.clone_from(&config);
    tell(feed, Observation::CniConfig(config)).await
}

/// False when nobody listens any more.
async fn tell(feed: &Feed, observation: Observation) -> bool {
    feed.send(Seen { at: clock::now(), observation }).await.is_ok()
}

/// Watches of the configuration directory, the plugin directories, and their parents (a directory that does
/// not exist yet, or is replaced, shows there).
struct Watches {
    stream: inotify::EventStream<[u8; 4096]>,
}

impl Watches {
    /// Looks up every directory, which blocks where the disk does.
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
            // One that is not there is not watched itself: its nearest parent is.
            let _ = inotify.watches().add(dir, mask | WatchMask::ONLYDIR);
            if let Some(parent) = dir.ancestors().skip(1).find(|parent| parent.is_dir())
                // `/` and the like change all the time and never lose these directories.
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
