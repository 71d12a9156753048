//! Open vSwitch: its datapaths and ports in the kernel, its database, and whether ovs-vswitchd handles the upcalls.

mod database;
#[cfg(fuzzing)]
pub(super) mod fuzz;
mod kernel;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_GENERIC;
use probe_engine::{Gap, OVS_DATABASE, Observation, Ovs, OvsPort, OvsUpcalls, cnis};
use tokio::time::Instant;

use super::netlink::{self, Listener, Received};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;
use kernel::{Change, Families, Stats};

/// Default directory of Open vSwitch's sockets.
const RUN_DIR: &str = "/run/openvswitch";
/// File name of the database's socket.
const DATABASE: &str = "db.sock";
/// Interval at which the whole state is read. On a host without Open vSwitch that takes one `stat` and one netlink request.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Delay between a change and reading the whole state, so that one read covers several changes: one pod causes three.
const COALESCE: Duration = Duration::from_millis(200);

/// Reports the state of Open vSwitch when it changes, and its upcalls. Returns when the receiver of the feed is dropped.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut reported = None;
    // Why the agent cannot read the database.
    let mut reported_error = None;
    // By datapath: its counters at the last poll, and whether it lost packets before that.
    let mut counts: BTreeMap<String, (Stats, bool)> = BTreeMap::new();
    loop {
        let families = kernel::families().unwrap_or_default();
        let mut listener = match families.groups().map(|groups| Listener::open(NETLINK_GENERIC, &groups)) {
            None => None,
            Some(Ok(listener)) => Some(listener),
            Some(Err(error)) => {
                let why = format!("cannot watch the ports of Open vSwitch: {error:#}; polling every 5 s");
                let gap = Gap { signal: "ovs.port".to_owned(), why, blind: false };
                if feed.send(Seen { at: clock::now(), observation: Observation::Gap(gap) }).await.is_err() {
                    return;
                }
                None
            }
        };
        // Until the families change: their IDs are assigned when the kernel module is loaded.
        loop {
            // If the datapaths cannot be read, the cause is the agent's own and shows nothing about Open vSwitch.
            let Some((state, stats, error)) = read_state(&settings, &families).await else {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            };
            let mut observations = Vec::new();
            if let Some(why) = error.clone().filter(|_| error != reported_error) {
                observations.push(Observation::Gap(Gap {
                    signal: OVS_DATABASE.to_owned(),
                    why,
                    blind: false,
                }));
            }
            counts.retain(|datapath, _| stats.iter().any(|(name, _)| name == datapath));
            for (datapath, now) in stats {
                let (before, losing) = counts.get(&datapath).copied().unwrap_or((now, false));
                let missed = now.missed.saturating_sub(before.missed);
                let lost = now.lost.saturating_sub(before.lost);
                counts.insert(datapath.clone(), (now, lost > 0));
                // The end of a loss is reported as well.
                if missed + lost > 0 || losing {
                    observations.push(Observation::OvsUpcalls(OvsUpcalls { datapath, missed, lost }));
                }
            }
            if reported.as_ref() != Some(&state) {
                reported = Some(state.clone());
                observations.push(Observation::Ovs(state));
            }
            // The gap is closed after the state is reported: a missing database without a gap would be a fault.
            if error.is_none() && reported_error.is_some() {
                observations.push(Observation::GapClosed { signal: OVS_DATABASE.to_owned() });
            }
            reported_error = error;
            for observation in observations {
                if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                    return;
                }
            }
            if !follow(&mut listener, &families, Instant::now() + POLL_INTERVAL, &feed).await {
                return;
            }
            if kernel::families().is_ok_and(|now| now != families) {
                break;
            }
        }
    }
}

/// Reports changes of ports until `deadline`, or until [`COALESCE`] after the first change. Returns false if the receiver of
/// the feed is dropped.
async fn follow(
    listener: &mut Option<Listener>,
    families: &Families,
    mut deadline: Instant,
    feed: &Feed,
) -> bool {
    let Some(listener) = listener else {
        tokio::time::sleep_until(deadline).await;
        return true;
    };
    loop {
        let ports: Vec<_> = match tokio::time::timeout_at(deadline, listener.next()).await {
            Err(_) => return true,
            Ok(Ok(Received::Datagram(datagram, _))) => {
                netlink::messages(datagram).filter_map(|message| families.change(message)).collect()
            }
            // Lost messages, and the state after an error, are covered by the next read of the whole state.
            Ok(_) => Vec::new(),
        };
        deadline = deadline.min(Instant::now() + COALESCE);
        for Change { name, kind, up } in ports {
            let observation = Observation::OvsPort(OvsPort { name, port_kind: kind, up });
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return false;
            }
        }
    }
}

/// Returns the directory of Open vSwitch's sockets: the one given by `--ovs-run-dir`, else the first candidate that contains a
/// database socket, else the default.
fn run_dir(settings: &Settings) -> PathBuf {
    let of_cnis = cnis::CNIS.iter().map(|cni| cni.ovs_run_dir).filter(|dir| !dir.is_empty());
    let mut candidates = std::iter::once(RUN_DIR).chain(of_cnis).map(PathBuf::from);
    let existing = || candidates.find(|dir| settings.on_host(&dir.join(DATABASE)).exists());
    settings.ovs_run_dir.clone().or_else(existing).unwrap_or_else(|| PathBuf::from(RUN_DIR))
}

/// Returns the state, the counters of each datapath, and why the agent cannot read the database, if so. Returns `None` if the
/// datapaths cannot be read from the kernel.
async fn read_state(
    settings: &Settings,
    families: &Families,
) -> Option<(Ovs, Vec<(String, Stats)>, Option<String>)> {
    let datapaths = families.datapaths().ok()?;
    let stats = datapaths.iter().map(|datapath| (datapath.name.clone(), datapath.stats)).collect();
    let socket = settings.on_host(&run_dir(settings).join(DATABASE));
    let (database, error) = match database::read(&socket).await {
        Ok(database) => (database, None),
        Err(error) => {
            (None, Some(format!("cannot read {}: {error}", clean(socket.as_os_str().as_bytes(), 256))))
        }
    };
    let module = families.datapath.is_some();
    let datapaths = datapaths.into_iter().map(|datapath| datapath.name).collect();
    Some((Ovs { module, datapaths, database }, stats, error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn run_dir_is_the_flag_then_a_directory_with_a_database_then_the_default() {
        let root = tempfile::tempdir().expect("a directory");
        let flag = root.path().to_str().expect("a text");
        let found = |flags: &[&str]| run_dir(&settings(&[&["--host-root", flag], flags].concat()));
        assert_eq!(found(&[]), PathBuf::from("/run/openvswitch"));
        for dir in ["/run/antrea/openvswitch", "/run/openvswitch"] {
            let on_host = root.path().join(dir.trim_start_matches('/'));
            fs::create_dir_all(&on_host).expect("made");
            fs::write(on_host.join("db.sock"), "").expect("written");
            assert_eq!(found(&[]), PathBuf::from(dir));
        }
        assert_eq!(found(&["--ovs-run-dir", "/other"]), PathBuf::from("/other"));
    }
}
