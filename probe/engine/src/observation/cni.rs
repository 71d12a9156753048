//! CNI configurations, plugins and their runs.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Actor, AgentSocket, ExitStatus, NetlinkError, NetnsSeen, ProcessClass, is_zero};

/// See [`super::Observation::CniConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniConfig {
    /// The directory that the runtime reads.
    pub dir: String,
    /// Why the directory could not be read. A directory that does not exist is not an error, but empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir_error: Option<String>,
    /// The directory does not exist.
    #[serde(default)]
    pub dir_missing: bool,
    /// The first path that the agent cannot read because it lacks permission, descriptors or memory, and why. The other
    /// fields are then not evidence: the runtime runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// Every `.conf`, `.conflist`, `.json`, in the order in which runtimes read them.
    pub files: Vec<ConfFile>,
    /// How many of them containerd loads (`max_conf_num`), each as one network of every pod; 0 for all. It loads none
    /// if one of these is invalid.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub max_files: u32,
    /// The directories in which the runtime searches for plugins.
    #[serde(default)]
    pub bin_dirs: Vec<String>,
    /// Plugins named by any readable file, and `loopback`, that are not in any of `bin_dirs`.
    #[serde(default)]
    pub missing_plugins: Vec<String>,
    /// Plugins that exist and cannot be executed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable_plugins: Vec<UnusablePlugin>,
    /// Files that meta-plugins wait for before they run another plugin.
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
    /// Returns the files that containerd loads.
    pub(crate) fn loaded(&self) -> &[ConfFile] {
        let most = if self.max_files == 0 { usize::MAX } else { self.max_files as usize };
        &self.files[..most.min(self.files.len())]
    }
}

/// A plugin that exists and cannot be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusablePlugin {
    /// The plugin's type.
    pub plugin: String,
    /// The first matching file in the plugin directories; control characters are escaped.
    pub path: String,
    /// A phrase that follows the path: `is not executable (mode 0644)`.
    pub why: String,
}

/// A file that a meta-plugin waits for: `readinessindicatorfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The plugin's type.
    pub plugin: String,
    /// Path; control characters are escaped.
    pub file: String,
    /// Whether it exists.
    pub present: bool,
}

/// See [`super::Observation::ConfAccess`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfAccess {
    /// The process.
    pub process: Actor,
    /// Its class, if it is a watched process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// File name without directory; empty for the directory itself.
    pub file: String,
    /// The kind of access.
    pub access: Access,
}

/// A kind of access to a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Opened.
    Opened,
    /// Closed after it had been opened for writing.
    Written,
    /// Created.
    Created,
    /// Removed.
    Removed,
    /// Renamed from this name.
    RenamedFrom,
    /// Renamed to this name.
    RenamedTo,
    /// The directory itself was removed or moved: a watch on it reports no further changes.
    DirectoryReplaced,
}

/// One configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfFile {
    /// File name without directory; control characters are escaped.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// The content.
    #[serde(flatten)]
    pub content: ConfContent,
}

impl ConfFile {
    /// Returns whether runtimes read a file of this name (libcni, `ConfFiles`).
    pub fn is_read(name: &str) -> bool {
        let Some((stem, end)) = name.rsplit_once('.') else { return false };
        !stem.is_empty() && matches!(end, "conf" | "conflist" | "json")
    }
}

/// The content of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case")]
pub enum ConfContent {
    /// A network configuration.
    Network {
        /// `name`
        network: String,
        /// The `type` of each plugin in order, then that of each `ipam` section.
        plugins: Vec<String>,
    },
    /// It was read and is not a network configuration.
    Invalid {
        /// One line: the error and its position.
        why: String,
    },
    /// It could not be read (permission denied, not a regular file, dangling link, too large).
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
    /// `K8S_POD_UID`: a pod that is deleted and created again under the same name has another UID. Empty when the
    /// runtime does not pass it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Pod {
    /// Returns whether both have the same namespace and name; UIDs are ignored.
    pub fn has_name_of(&self, other: &Self) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }
}

impl core::fmt::Display for Pod {
    /// Writes `namespace/name`, as kubectl prints it.
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
    /// The process that started it.
    #[serde(default)]
    pub parent: Actor,
    /// What was at `netns` when the plugin started.
    #[serde(default, skip_serializing_if = "NetnsSeen::is_unknown")]
    pub netns_seen: NetnsSeen,
    /// How long it has been running, nanoseconds, if it was found after its start: it is older than the agent, or
    /// events were lost. Otherwise 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub running_ns: u64,
}

/// See [`super::Observation::CniEnd`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniEnd {
    /// The start of the run.
    #[serde(flatten)]
    pub start: CniStart,
    /// Nanoseconds from exec to exit.
    pub took_ns: u64,
    /// Its exit status.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
    /// Plugins that it started, in order of their start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegates: Vec<Delegate>,
    /// Netlink requests of it or of a delegate that the kernel refused, newest last; not each one makes the run fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<NetlinkError>,
    /// Unix sockets to which it or a delegate tried to connect, in order of the first attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<AgentSocket>,
}

/// A plugin started by a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// Name of the executable.
    pub plugin: String,
    /// Nanoseconds from exec to exit.
    pub took_ns: u64,
    /// Its exit status.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
}

/// A CNI error object, SPEC.md "Error". Texts are truncated and control characters are escaped.
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
    /// The directory in which host-local keeps them; control characters are escaped.
    pub dir: String,
    /// Number of allocated addresses.
    pub held: u64,
    /// Number of namespaces that a runtime has bound to a name: existing sandboxes.
    pub namespaces: u64,
}

/// See [`super::Observation::PluginFile`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginFile {
    /// The process whose system call failed.
    pub process: Actor,
    /// Name of the plugin; control characters are escaped.
    pub plugin: String,
    /// Whether the file was opened for writing; false when it was executed.
    #[serde(default)]
    pub write: bool,
    /// Positive errno: ETXTBSY, EACCES, EPERM, ENOEXEC, ENOENT (its interpreter), …
    pub errno: u32,
    /// What denies execution, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_by: Option<DeniedBy>,
}

/// What denies the execution of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedBy {
    /// The mode of the file.
    Mode,
    /// The file system is mounted `noexec`.
    Mount,
    /// A security module (SELinux, AppArmor, IMA, …): mode and mount allow it.
    SecurityModule,
}

impl DeniedBy {
    /// Returns a phrase that follows the errno.
    pub(crate) const fn words(by: Option<Self>) -> &'static str {
        match by {
            Some(Self::Mode) => "its mode does not allow it",
            Some(Self::Mount) => "its file system is mounted noexec",
            Some(Self::SecurityModule) => "a security module denies it (its mode and mount allow it)",
            None => "its mode, its mount or a security module denies it",
        }
    }
}
