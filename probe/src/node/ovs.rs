//! Open vSwitch: what the kernel's half has, what its database says, whether somebody takes its packets.

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

use super::netlink::{self, Came, Listener};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;
use kernel::{Change, Families, Stats};

/// The default of Open vSwitch, and the name of its database's socket.
const RUN_DIR: &str = "/run/openvswitch";
const DATABASE: &str = "db.sock";
/// Between two looks at the whole state; on a host without any of it that is one `stat` and one question.
const LOOK: Duration = Duration::from_secs(5);
/// How long changes may gather before the whole state is read: one pod makes three.
const GATHER: Duration = Duration::from_millis(200);

/// Runs for ever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut told = None;
    // Why the agent cannot read the database.
    let mut unread = None;
    // By datapath: its counters at the last look, and whether it lost packets then.
    let mut counts: BTreeMap<String, (Stats, bool)> = BTreeMap::new();
    loop {
        let families = kernel::families().unwrap_or_default();
        let mut listener = match families.groups().map(|groups| Listener::open(NETLINK_GENERIC, &groups)) {
            None => None,
            Some(Ok(listener)) => Some(listener),
            Some(Err(error)) => {
                let why = format!("watch the ports of Open vSwitch: {error:#}; its state is read every 5 s");
                let gap = Gap { signal: "ovs.port".to_owned(), why, blind: false };
                if feed.send(Seen { at: clock::now(), observation: Observation::Gap(gap) }).await.is_err() {
                    return;
                }
                None
            }
        };
        // Until the families change: their numbers are the module's own.
        loop {
            // The datapaths cannot be read for a reason of the agent's own.
            let Some((state, stats, denied)) = look(&settings, &families).await else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let mut seen = Vec::new();
            if let Some(why) = denied.clone().filter(|_| denied != unread) {
                seen.push(Observation::Gap(Gap { signal: OVS_DATABASE.to_owned(), why, blind: false }));
            }
            counts.retain(|datapath, _| stats.iter().any(|(name, _)| name == datapath));
            for (datapath, now) in stats {
                let (before, losing) = counts.get(&datapath).copied().unwrap_or((now, false));
                let missed = now.missed.saturating_sub(before.missed);
                let lost = now.lost.saturating_sub(before.lost);
                counts.insert(datapath.clone(), (now, lost > 0));
                // A loss that has ended is worth a word, too.
                if missed + lost > 0 || losing {
                    seen.push(Observation::OvsUpcalls(OvsUpcalls { datapath, missed, lost }));
                }
            }
            if told.as_ref() != Some(&state) {
                told = Some(state.clone());
                seen.push(Observation::Ovs(state));
            }
            // After the state: without the gap, a database that is not there is a fault.
            if denied.is_none() && unread.is_some() {
                seen.push(Observation::GapClosed { signal: OVS_DATABASE.to_owned() });
            }
            unread = denied;
            for observation in seen {
                if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                    return;
                }
            }
            if !follow(&mut listener, &families, Instant::now() + LOOK, &feed).await {
                return;
            }
            if kernel::families().is_ok_and(|now| now != families) {
                break;
            }
        }
    }
}

/// Tells of ports until `deadline`, or until a little after the first change. False when nobody listens.
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
            Ok(Ok(Came::Datagram(datagram, _))) => {
                netlink::messages(datagram).filter_map(|message| families.change(message)).collect()
            }
            // What was lost is read with the rest.
            Ok(_) => Vec::new(),
        };
        deadline = deadline.min(Instant::now() + GATHER);
        for Change { name, kind, up } in ports {
            let observation = Observation::OvsPort(OvsPort { name, port_kind: kind, up });
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return false;
            }
        }
    }
}

/// Where Open vSwitch has its sockets: as named by hand, else where a database has one.
fn run_dir(settings: &Settings) -> PathBuf {
    let usual = || PathBuf::from(RUN_DIR);
    let of_cnis = cnis::CNIS.iter().map(|cni| cni.ovs_run_dir).filter(|dir| !dir.is_empty());
    let mut places = std::iter::once(RUN_DIR).chain(of_cnis).map(PathBuf::from);
    let there = || places.find(|dir| settings.on_host(&dir.join(DATABASE)).exists());
    settings.ovs_run_dir.clone().or_else(there).unwrap_or_else(usual)
}

/// Returns the state, the counters of each datapath, and why the agent cannot read the database, if so. `None` if the kernel does
/// not answer.
async fn look(
    settings: &Settings,
    families: &Families,
) -> Option<(Ovs, Vec<(String, Stats)>, Option<String>)> {
    let datapaths = families.datapaths().ok()?;
    let stats = datapaths.iter().map(|datapath| (datapath.name.clone(), datapath.stats)).collect();
    let socket = settings.on_host(&run_dir(settings).join(DATABASE));
    let (database, denied) = match database::read(&socket).await {
        Ok(database) => (database, None),
        Err(error) => (None, Some(format!("read {}: {error}", clean(socket.as_os_str().as_bytes(), 256)))),
    };
    let module = families.datapath.is_some();
    let datapaths = datapaths.into_iter().map(|datapath| datapath.name).collect();
    Some((Ovs { module, datapaths, database }, stats, denied))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn the_directory_is_the_flag_s_then_where_a_database_is_then_the_usual_one() {
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
