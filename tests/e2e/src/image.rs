//! The only image of the node: busybox, for sandboxes and containers. It is packed here because nothing is pulled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// Name of the image.
pub(crate) const NAME: &str = "localhost/netready/busybox:1";

/// Packs the image as `docker save` does, and returns the path of the archive.
pub(crate) fn archive(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("image-root/bin");
    fs::create_dir_all(&root)?;
    fs::copy("/bin/busybox", root.join("busybox")).context("copy /bin/busybox")?;
    let layer = dir.join("layer.tar");
    tar(&dir.join("image-root"), &layer, &["."])?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // As the first process of its PID namespace it ignores SIGTERM; sandboxes are killed with SIGKILL.
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    let archive = dir.join("image.tar");
    tar(dir, &archive, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}

fn tar(dir: &Path, to: &Path, what: &[&str]) -> Result<()> {
    let status = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(to).args(what).status();
    ensure!(status.context("run tar")?.success(), "pack {}", to.display());
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}
