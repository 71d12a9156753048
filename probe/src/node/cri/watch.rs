//! Schedules the calls to the container runtime.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Cri, CriAnswer, Gap, Observation, limits};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{RuntimeReport, query};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::node::discovery::{Discovery, socket};
use crate::settings::Settings;

/// Interval while the runtime is ready, and while it is not: the kubelet's own interval (`updateRuntimeUp`) is 5 s.
const READY_INTERVAL: Duration = Duration::from_secs(30);
const NOT_READY_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest interval, regardless of the number of events.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Delay of one more round after an event, by which time the runtime has reacted to it.
const SETTLE_DELAY: Duration = Duration::from_nanos(limits::LOAD + limits::SECOND);
/// Signal of the gap if the runtime cannot be called.
const SIGNAL: &str = "cri";

/// A runtime's socket, and what is known from its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The path of its socket on the host.
    pub(crate) socket: String,
    pub(crate) sandbox_image: Option<String>,
    /// The configuration file that disables CRI.
    pub(crate) disabled_by: Option<String>,
}

/// The runtime that is called.
pub(crate) type Endpoints = watch::Sender<Option<Endpoint>>;

/// Calls the runtime periodically, and after events that its answers can depend on. Returns when the receiver of the feed, or
/// the sender of the endpoint, is dropped.
pub(crate) async fn watch(
    settings: Arc<Settings>,
    mut endpoints: watch::Receiver<Option<Endpoint>>,
    happened: Arc<Notify>,
    feed: Feed,
) {
    let mut reported = None;
    let mut has_gap = false;
    let mut settled = None;
    loop {
        let Some(endpoint) = endpoints.borrow_and_update().clone() else {
            if endpoints.changed().await.is_err() {
                return;
            }
            continue;
        };
        let answer = endpoint.ask(&settings).await;
        let mut observations = Vec::new();
        let every = match answer {
            Ok(answer) => {
                if std::mem::take(&mut has_gap) {
                    observations.push(Observation::GapClosed { signal: SIGNAL.to_owned() });
                }
                let every = if answer.is_well() { READY_INTERVAL } else { NOT_READY_INTERVAL };
                let cri = Cri { socket: endpoint.socket, answer };
                // A ready runtime is reported only if its answer changed or an event preceded it.
                let is_change =
                    reported.as_ref() != Some(&cri) || every == NOT_READY_INTERVAL || settled.is_some();
                if is_change {
                    reported = Some(cri.clone());
                    observations.push(Observation::Cri(cri));
                }
                every
            }
            Err(why) => {
                if !std::mem::replace(&mut has_gap, true) {
                    observations.push(Observation::Gap(Gap { signal: SIGNAL.to_owned(), why, blind: false }));
                }
                READY_INTERVAL
            }
        };
        for observation in observations {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        let now = Instant::now();
        settled.take_if(|at| *at <= now);
        let due = settled.unwrap_or(now + every).min(now + every);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = happened.notified() => {
                settled = Some(Instant::now() + SETTLE_DELAY);
                tokio::time::sleep_until(now + MIN_INTERVAL).await;
            }
            changed = endpoints.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

impl Endpoint {
    /// Returns the endpoint that the kubelet is configured for; `None` if it is unknown.
    pub(crate) fn of(settings: &Settings, discovery: &Discovery) -> Option<Self> {
        let named = settings.runtime_endpoint.as_ref().and_then(|path| socket(&path.to_string_lossy()));
        let of_kubelet = || discovery.kubelet.runtime_endpoint.as_ref().map(|known| known.value.clone());
        let config = &discovery.runtime_config;
        Some(Self {
            socket: named.or_else(of_kubelet)?,
            sandbox_image: config.sandbox_image.as_ref().map(|known| known.value.clone()),
            disabled_by: config.cri_disabled.as_ref().map(|known| known.source.clone()),
        })
    }

    /// Runs one round of calls and passes what the runtime reports of itself to `settings`.
    pub(crate) async fn ask(&self, settings: &Settings) -> Result<CriAnswer, String> {
        let report = query(&settings.on_host(Path::new(&self.socket)), self.sandbox_image.as_deref()).await;
        let RuntimeReport { mut answer, cni, cgroup_driver } = report
            .map_err(|error| format!("cannot query the container runtime at {}: {error}", self.socket))?;
        match &mut answer {
            CriAnswer::Serves(_) => {
                settings.cni.report(cni);
                settings.cgroup_driver.report(cgroup_driver.map(|known| known.map(Some)));
            }
            CriAnswer::Unimplemented { disabled_by } => disabled_by.clone_from(&self.disabled_by),
            _ => {}
        }
        Ok(answer)
    }
}
