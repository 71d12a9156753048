//! The machine's only file system, an initramfs: the tests, the programs that they run, and the kernel's modules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::kernel::Kernel;
use crate::quiet;

/// Programs that the tests and the init script run; they are copied with their libraries.
const PROGRAMS: &[&str] = &[
    "/usr/bin/dash",
    "/usr/sbin/ip",
    "/usr/sbin/nft",
    "/usr/bin/curl",
    "/usr/bin/setpriv",
    "/usr/bin/unshare",
    "/usr/sbin/sysctl",
    "/usr/sbin/ovs-vswitchd",
    "/usr/sbin/ovsdb-server",
    "/usr/bin/ovs-vsctl",
    "/usr/bin/ovsdb-tool",
    "/usr/sbin/dnsmasq",
    "/usr/sbin/mkfs.ext4",
    "/usr/bin/tinyproxy",
];

/// Debian's packages of these programs, of busybox, and of the plugins.
pub(super) const PACKAGES: &[&str] = &[
    "dash",
    "iproute2",
    "nftables",
    "curl",
    "procps",
    "util-linux",
    "openvswitch-switch",
    "dnsmasq-base",
    "e2fsprogs",
    "tinyproxy-bin",
    "busybox-static",
    "containernetworking-plugins",
];

/// Files that these programs read.
const DATA: &[&str] = &["/usr/share/openvswitch/vswitch.ovsschema"];

/// Programs of the init script that busybox provides. Not its `ip` and `sh`, which would shadow the real ones.
const APPLETS: &[&str] = &[
    "cat", "cut", "echo", "insmod", "ls", "mkdir", "mount", "poweroff", "ps", "sleep", "stty", "timeout",
    "tr", "umount", "uname",
];

/// Modules that the tests use and that Debian's cloud kernels do not have built in. Modules that the kernel requests itself
/// are among their dependencies.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "dummy",
    "vxlan",
    "geneve",
    "ipip",
    "wireguard",
    "openvswitch",
    "tun",
    "vport-geneve",
    "nf_tables",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_chain_nat",
    "nft_compat",
    "xt_comment",
    "xt_addrtype",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_mark",
    "xt_tcpudp",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "sch_ingress",
    "sch_netem",
    "mptcp_diag",
    "tcp_diag",
    "inet_diag",
    "unix_diag",
    "netlink_diag",
    "loop",
    "ext4",
];

/// The directory of the reference plugins, as the live tests expect it.
const PLUGINS: &str = "/usr/lib/cni";

/// What the file system contains besides the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents<'a> {
    pub(super) probe: &'a Path,
    pub(super) helper: &'a Path,
    pub(super) tests: &'a [PathBuf],
    /// Runs only tests whose name contains this.
    pub(super) filter: Option<&'a str>,
    /// A system of the machine's architecture, if that is not the host's.
    pub(super) system: Option<&'a Path>,
    /// A benchmark that runs instead of the tests; it is copied with its libraries.
    pub(super) bench: Option<&'a Path>,
}

/// Writes the part of the file system that all kernels share to the compressed archive `to`.
pub(super) fn base(to: &Path, stage: &Path, contents: &Contents<'_>) -> Result<()> {
    let _ = fs::remove_dir_all(stage);
    for dir in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "etc",
        "root",
        "lab/tests",
    ] {
        fs::create_dir_all(stage.join(dir))?;
    }
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        symlink(target, stage.join(link))?;
    }
    match contents.system {
        None => copy_programs(stage, contents.bench)?,
        Some(system) => copy_system(system, stage)?,
    }
    for applet in APPLETS {
        let _ = fs::remove_file(stage.join("usr/bin").join(applet));
        symlink("busybox", stage.join("usr/bin").join(applet))?;
    }
    let _ = fs::remove_file(stage.join("usr/bin/sh"));
    symlink("dash", stage.join("usr/bin/sh"))?;
    symlink("/proc/mounts", stage.join("etc/mtab"))?;
    fs::write(stage.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::write(stage.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    fs::copy(contents.probe, stage.join("lab/probe"))?;
    fs::copy(contents.helper, stage.join("lab/lab-helper"))?;
    fs::write(stage.join("lab/filter"), contents.filter.unwrap_or_default())?;
    for test in contents.tests {
        let name = test.file_name().context("a test has a name")?;
        fs::copy(test, stage.join("lab/tests").join(name))?;
    }
    if let Some(bench) = contents.bench {
        fs::copy(bench, stage.join("lab/bench"))?;
    }
    let init = stage.join("init");
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(stage, to)
}

/// Copies the host's programs and the program `more`, with their libraries.
fn copy_programs(stage: &Path, more: Option<&Path>) -> Result<()> {
    let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
    let plugins = fs::read_dir(PLUGINS).context("list the reference plugins")?;
    let plugins: Vec<_> = plugins.flatten().map(|entry| entry.path()).collect();
    for program in PROGRAMS.iter().map(PathBuf::from).chain(plugins) {
        wanted.extend(libraries(&program)?);
        wanted.insert(program);
    }
    if let Some(program) = more {
        wanted.extend(libraries(program)?);
    }
    wanted.extend(DATA.iter().map(PathBuf::from));
    for file in &wanted {
        let inside = stage.join(file.strip_prefix("/")?);
        fs::create_dir_all(inside.parent().context("a file lies in a directory")?)?;
        fs::copy(file, &inside).with_context(|| format!("copy {}", file.display()))?;
    }
    fs::copy("/bin/busybox", stage.join("usr/bin/busybox")).context("copy busybox")?;
    Ok(())
}

/// Copies programs and files of another architecture from its unpacked packages.
fn copy_system(system: &Path, stage: &Path) -> Result<()> {
    for part in ["bin", "sbin", "lib", "usr/bin", "usr/sbin", "usr/lib", "usr/share/openvswitch"] {
        let from = system.join(part);
        if !from.is_dir() {
            continue;
        }
        // The stage has everything below /usr, the packages still have files in / as well.
        let to = stage.join(if part.starts_with("usr") { part.to_owned() } else { format!("usr/{part}") });
        fs::create_dir_all(&to)?;
        quiet(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to))?;
    }
    for spare in ["usr/lib/modules", "usr/lib/python3", "usr/lib/python3.11", "usr/lib/firmware"] {
        let _ = fs::remove_dir_all(stage.join(spare));
    }
    // The installation of the package would create a link here.
    fs::copy(system.join("usr/lib/openvswitch-switch/ovs-vswitchd"), stage.join("usr/sbin/ovs-vswitchd"))?;
    Ok(())
}

/// Writes an archive that overrides files of the preceding ones, so that only `tests` run, one after the other.
pub(super) fn alone(tests: &[String], to: &Path, stage: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(stage);
    fs::create_dir_all(stage.join("lab"))?;
    fs::write(stage.join("lab/filter"), tests.join(" "))?;
    fs::write(stage.join("lab/threads"), "1")?;
    pack(stage, to)
}

/// Writes the archive of one kernel: its modules, numbered in the order in which they are loaded.
pub(super) fn modules(kernel: &Kernel, to: &Path, stage: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(stage);
    let dir = stage.join("modules");
    fs::create_dir_all(&dir)?;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for module in MODULES {
        let mut ask = Command::new("modprobe");
        ask.arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", module]);
        let output = ask.output().context("run modprobe")?;
        // Prints nothing for a module that this kernel has built in or does not have.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // Options may follow the path.
            let Some(path) = line.strip_prefix("insmod ").and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            if !seen.insert(path.to_owned()) {
                continue;
            }
            let name =
                Path::new(path).file_name().context("a module has a name")?.to_string_lossy().into_owned();
            let plain = name.split(".ko").next().unwrap_or(&name);
            unpack(Path::new(path), &dir.join(format!("{:03}-{plain}.ko", seen.len())))?;
        }
    }
    ensure!(!seen.is_empty(), "no module found for {}", kernel.release);
    pack(stage, to)
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            fs::copy(from, to).with_context(|| format!("copy the module {}", from.display()))?;
            return Ok(());
        }
    };
    let file = fs::File::create(to)?;
    let status = Command::new(program).args(["-d", "-q", "-c"]).arg(from).stdout(file).status()?;
    ensure!(status.success(), "{program} cannot unpack {}", from.display());
    Ok(())
}

/// Returns the libraries that the dynamic loader would load for `program`; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    ensure!(program.exists(), "{} is missing: run `cargo xtask setup`", program.display());
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Packs a directory into a compressed archive of the format that the kernel unpacks at boot.
fn pack(stage: &Path, to: &Path) -> Result<()> {
    let script = "find . -print0 | cpio --null --create --format=newc --quiet | zstd -3 -q -f -o \"$1\"";
    let mut sh = Command::new("sh");
    sh.args(["-euc", script, "sh"]).arg(to).current_dir(stage).stdin(Stdio::null());
    quiet(&mut sh)
}
