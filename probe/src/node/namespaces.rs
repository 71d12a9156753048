//! Network namespaces that runtimes have bound to a name, from mountinfo.

use std::path::Path;

use crate::settings::Settings;

/// Most namespaces that are taken: 110 pods, and as many again for what is left over, twice.
const MOST: usize = 512;

/// Inode numbers of the namespaces bound inside the directory where runtimes bind them.
pub(crate) fn bound(settings: &Settings) -> Vec<u32> {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let mut found = parse(&mounts, &settings.on_host(&settings.netns_dir));
    found.sort_unstable();
    // The same mount shows under /run and /var/run, and once more for each shared parent.
    found.dedup();
    found.truncate(MOST);
    found
}

/// proc_pid_mountinfo(5): the fourth field is the root (`net:[4026532177]`), the fifth the mount point, and
/// the file system's type follows a lone dash.
fn parse(mounts: &str, dir: &Path) -> Vec<u32> {
    let namespace = |line: &str| {
        let mut fields = line.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let inside = Path::new(point).starts_with(dir)
            || Path::new(point).starts_with(Path::new("/var").join(dir.strip_prefix("/").ok()?));
        let is_nsfs = line.split(" - ").nth(1)?.starts_with("nsfs ");
        let inum = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        (inside && is_nsfs).then_some(inum)
    };
    mounts.lines().filter_map(namespace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bound_network_namespaces_count() {
        let mounts = "\
            22 1 0:21 / / rw - ext4 /dev/vda rw\n\
            90 22 0:4 net:[4026532177] /run/netns/cni-1 rw shared:1 - nsfs nsfs rw\n\
            91 22 0:4 net:[4026532178] /var/run/netns/cni-2 rw - nsfs nsfs rw\n\
            92 22 0:4 mnt:[4026532179] /run/netns/x rw - nsfs nsfs rw\n\
            93 22 0:4 net:[4026532180] /elsewhere/y rw - nsfs nsfs rw\n\
            94 22 0:4 net:[nonsense] /run/netns/z rw - nsfs nsfs rw\n\
            cut off";
        assert_eq!(parse(mounts, Path::new("/run/netns")), [4_026_532_177, 4_026_532_178]);
    }
}
