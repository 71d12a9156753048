//! Configurations, plugins and their runs.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Actor, AgentSocket, ExitStatus, NetlinkError, NetnsSeen, ProcessClass, is_zero};

/// See [`super::Observation::CniConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniConfig {
    /// The directory that the runtime reads.
    pub dir: String,
    /// Why the directory could not be read; it is then treated as empty when it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir_error: Option<String>,
    /// The directory is not there.
    #[serde(default)]
    pub dir_missing: bool,
    /// The first path that the agent cannot read for want of its own permission, descriptors or memory, and why: nothing else here
    /// counts then. The runtime is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// Every `.conf`, `.conflist`, `.json`, in the order in which runtimes read them.
    pub files: Vec<ConfFile>,
    /// How many of them containerd loads (`max_conf_num`), one network of each pod for each; 0 for all. It loads none if one
    /// of these is bad.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub max_files: u32,
    /// The directories in which plugins are looked for.
    #[serde(default)]
    pub bin_dirs: Vec<String>,
    /// Plugins named by any readable file, and `loopback`, that are not in any of `bin_dirs`.
    #[serde(default)]
    pub missing_plugins: Vec<String>,
    /// Those that are there and cannot be run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable_plugins: Vec<UnusablePlugin>,
    /// Files that meta-plugins wait for before they do anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<WaitsFor>,
    /// Host links that the files configure plugins to create for pods: `bridge` of the reference plugin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_one(max_files: &u32) -> bool {
    *max_files == 1
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            dir: String::new(),
            dir_error: None,
            dir_missing: false,
            denied: None,
            files: Vec::new(),
            max_files: one(),
            bin_dirs: Vec::new(),
            missing_plugins: Vec::new(),
            unusable_plugins: Vec::new(),
            waits_for: Vec::new(),
            links: Vec::new(),
        }
    }
}

impl CniConfig {
    /// The files that containerd loads.
    pub(crate) fn loaded(&self) -> &[ConfFile] {
        let most = if self.max_files == 0 { usize::MAX } else { self.max_files as usize };
        &self.files[..most.min(self.files.len())]
    }
}

/// A plugin that is there and cannot be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusablePlugin {
    /// The plugin's type.
    pub plugin: String,
    /// The file that a runtime finds first; control characters are escaped.
    pub path: String,
    /// One line that follows the path: `is not executable (mode 0644)`.
    pub why: String,
}

/// What a meta-plugin waits for: `readinessindicatorfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The plugin's type.
    pub plugin: String,
    /// Path; control characters are escaped.
    pub file: String,
    /// It is there.
    pub present: bool,
}

/// See [`super::Observation::ConfAccess`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfAccess {
    /// Who.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// File name without directory; empty for the directory itself.
    pub file: String,
    /// What was done.
    pub access: Access,
}

/// What was done to a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Opened.
    Opened,
    /// Closed after it was open for writing.
    Written,
    /// Created.
    Created,
    /// Removed.
    Removed,
    /// It had this name until it was renamed.
    RenamedFrom,
    /// It has this name since it was renamed.
    RenamedTo,
    /// The directory itself was removed or moved: who watches it sees nothing any more.
    DirectoryReplaced,
}

/// One configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfFile {
    /// File name without directory; control characters are escaped.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What is in it.
    #[serde(flatten)]
    pub content: ConfContent,
}

impl ConfFile {
    /// Runtimes read a file of this name (libcni, `ConfFiles`).
    pub fn is_read(name: &str) -> bool {
        let Some((stem, end)) = name.rsplit_once('.') else { return false };
        !stem.is_empty() && matches!(end, "conf" | "conflist" | "json")
    }
}

/// What a configuration file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case")]
pub enum ConfContent {
    /// A network configuration.
    Network {
        /// `name`
        network: String,
        /// The `type` of each plugin in order, then of each `ipam` section.
        plugins: Vec<String>,
    },
    /// It was read and is no network configuration.
    Invalid {
        /// One line: what is wrong and where.
        why: String,
    },
    /// It could not be read (no permission, no regular file, dangling link, too large).
    Unreadable {
        /// One line.
        why: String,
    },
}

/// A pod as `CNI_ARGS` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`
    pub namespace: String,
    /// `K8S_POD_NAME`
    pub name: String,
    /// `K8S_POD_UID`: a pod that is deleted and created again under the same name has another one. Empty when the
    /// runtime does not pass it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Pod {
    /// Returns whether both have the same namespace and name, whatever their UIDs.
    pub fn has_name_of(&self, other: &Self) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }
}

impl core::fmt::Display for Pod {
    /// `namespace/name`, as kubectl prints it.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// See [`super::Observation::CniStart`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniStart {
    /// The plugin's process.
    pub pid: u32,
    /// `CNI_COMMAND`: ADD, DEL, CHECK, VERSION, STATUS, GC.
    pub command: String,
    /// Name of the executable, which is the plugin's type.
    pub plugin: String,
    /// `CNI_CONTAINERID`
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`
    #[serde(default)]
    pub ifname: String,
    /// From `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Who started it.
    #[serde(default)]
    pub parent: Actor,
    /// What `netns` was when it started.
    #[serde(default, skip_serializing_if = "NetnsSeen::is_unknown")]
    pub netns_seen: NetnsSeen,
    /// How long it has been running, nanoseconds, when it is told later than it started: it was there before the agent, or
    /// events were lost; else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub running_ns: u64,
}

/// See [`super::Observation::CniEnd`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniEnd {
    /// What was started.
    #[serde(flatten)]
    pub start: CniStart,
    /// Nanoseconds from exec to the end.
    pub took_ns: u64,
    /// How it ended.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
    /// Plugins that it started itself, in order of their start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegates: Vec<Delegate>,
    /// What the kernel refused it or a delegate, newest last; it may have been of no consequence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<NetlinkError>,
    /// Unix sockets that it or a delegate connected to, in order of the first try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<AgentSocket>,
}

/// A plugin started by a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// Name of the executable.
    pub plugin: String,
    /// Nanoseconds from exec to the end.
    pub took_ns: u64,
    /// How it ended.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
}

/// A CNI error object, SPEC.md "Error". Texts are cut and control characters escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// `code`
    pub code: u64,
    /// `msg`
    pub msg: String,
    /// `details`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// See [`super::Observation::Leases`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// Where host-local keeps them; control characters are escaped.
    pub dir: String,
    /// Addresses that are given out.
    pub held: u64,
    /// Namespaces that a runtime has bound to a name: sandboxes that live.
    pub namespaces: u64,
}

/// See [`super::Observation::PluginFile`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginFile {
    /// Who tried.
    pub process: Actor,
    /// Name of the plugin; control characters are escaped.
    pub plugin: String,
    /// It was to be opened for writing, not to be executed.
    #[serde(default)]
    pub write: bool,
    /// Positive errno: ETXTBSY, EACCES, EPERM, ENOEXEC, ENOENT (its interpreter), …
    pub errno: u32,
    /// Who says that it may not be executed, as far as that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_by: Option<DeniedBy>,
}

/// Who says that a file may not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedBy {
    /// Its mode.
    Mode,
    /// Its file system is mounted `noexec`.
    Mount,
    /// Neither: a security module (SELinux, AppArmor, IMA, …).
    SecurityModule,
}

impl DeniedBy {
    /// In plain words, after the errno.
    pub(crate) const fn words(by: Option<Self>) -> &'static str {
        match by {
            Some(Self::Mode) => "its mode does not allow it",
            Some(Self::Mount) => "its file system is mounted noexec",
            Some(Self::SecurityModule) => "its mode and its mount allow it, so a security module says no",
            None => "its mode, its mount, or a security module says no",
        }
    }
}
