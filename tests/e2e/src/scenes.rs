//! The scenes, grouped into stories.

mod api;
mod bootstrap;
mod life;
mod network;
mod node;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::agent;
use crate::cluster::{Cluster, Running};
use crate::stage::Stage;

/// Prefix of the line for a finished scene.
pub(crate) const DONE: char = '✔';

/// Runs a scene: makes the fault, waits for the expected reports, and repairs it.
type Scene = fn(&mut Stage<'_>) -> Result<()>;

/// Stories of about the same length, each for its own node, because most of a scene is waiting. Scenes with outages come
/// first: the events of an outage follow minutes later.
const STORIES: [&[(&str, Scene)]; 4] = [
    &[
        ("API server stopped", api::stopped),
        ("API server frozen", api::frozen),
        ("API server behind a filter that drops", api::dropped),
        ("API server behind a filter that rejects", api::rejected),
        ("API server behind the node's own filter", api::firewalled),
        ("API server killed whenever it serves", api::killed_whenever_it_serves),
        ("kube-apiserver crash-looping", api::crash_loop),
    ],
    &[
        ("etcd killed", api::etcd_killed),
        ("etcd frozen", api::etcd_frozen),
        ("credentials expired", api::credentials),
        ("kubeconfig with another CA", api::another_authority),
        ("certificate of another CA", api::unknown_certificate),
        ("bootstrap token expired", bootstrap::expired),
        ("API server stopped and configuration removed", api::both_at_once),
        ("node deleted", node::deleted),
        ("agent restarted", node::restarted),
        ("account in the cluster, Service address dead", api::in_cluster),
        ("webhook blocks the pods of the network", api::webhook),
        ("node without a pod CIDR", network::without_pod_cidr),
    ],
    &[
        ("configuration removed", network::removed),
        ("configuration broken", network::broken),
        ("configuration shadowed", network::shadowed),
        ("configuration elsewhere", network::elsewhere),
        ("configuration where distributions have it", network::of_distributions),
        ("plugin missing", network::missing),
        ("plugin not executable", network::not_executable),
        ("plugin of another machine", network::of_another_machine),
        ("plugin without its interpreter", network::without_interpreter),
        ("plugin fails", network::plugin_fails),
        ("bridge with another address", network::conflict),
        ("addresses exhausted", network::exhausted),
        ("network that waits for another", network::meta_plugin),
    ],
    &[
        ("healthy life", life::healthy),
        ("kubelet restarted beside one runtime of several", life::one_runtime),
        ("containerd killed, namespaces gone", node::runtime_killed),
        ("containerd frozen", node::runtime_frozen),
        ("containerd without CRI", node::without_cri),
        ("kubelet stopped", node::kubelet_stopped),
        ("kubelet frozen", node::kubelet_frozen),
        ("sandbox image gone", node::image_gone),
        ("disk of containerd full", node::disk_full),
        ("ovs-vswitchd killed", node::switch_killed),
    ],
];

/// Returns the names of the scenes of each story.
pub(crate) fn stories() -> impl Iterator<Item = Vec<&'static str>> {
    STORIES.iter().map(|story| story.iter().map(|(name, _)| *name).collect())
}

/// Fails if a word matches no scene, because a run without scenes would look like a success.
pub(crate) fn check(chosen: &[String]) -> Result<()> {
    for part in chosen {
        if !stories().flatten().any(|name| matches(name, part)) {
            let names: Vec<_> = stories().flatten().collect();
            bail!("no scene matches {part:?}; the scenes are:\n  {}", names.join("\n  "));
        }
    }
    Ok(())
}

/// Returns whether `part` is the name of this scene, or a part of it without being the full name of another scene.
fn matches(name: &str, part: &str) -> bool {
    name == part || name.contains(part) && stories().flatten().all(|other| other != part)
}

/// Runs the chosen scenes; returns the error of the first one that fails.
pub(crate) fn run(cluster: &mut Cluster, chosen: &[String]) -> Result<()> {
    let mut stage = Stage::new(cluster)?;
    for (name, scene) in STORIES.into_iter().flatten() {
        if chosen.iter().any(|part| matches(name, part)) {
            let started = Instant::now();
            let recorder = agent::record(stage.cluster, name)?;
            scene(&mut stage).with_context(|| format!("scene {name:?}"))?;
            recorder.map(Running::stop).transpose()?;
            println!("{DONE} {name} ({:.0} s)", started.elapsed().as_secs_f32());
        }
    }
    stage.end()
}
