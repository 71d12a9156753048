//! Selection of the observations that a trace prints.

use probe_engine::{Observation, Pod};

/// A group of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Topic {
    /// Connects to the API server, its listeners and addresses.
    Api,
    /// CNI runs and configuration.
    Cni,
    /// Network namespaces.
    Netns,
    /// Links.
    Link,
    /// Components of the node and their sockets.
    Process,
    /// Limits, credentials, the clock and kernel settings.
    Node,
}

/// The lines that are selected. The verdict is always printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Selected topics; all if empty.
    pub(crate) only: Vec<Topic>,
    /// Only CNI operations of this pod.
    pub(crate) pod: Option<Pod>,
}

impl Filter {
    /// Returns whether the observation is selected.
    pub(crate) fn selects(&self, observation: &Observation) -> bool {
        if let (Some(pod), Observation::CniEnd(end)) = (&self.pod, observation)
            && !end.start.pod.as_ref().is_some_and(|own| own.has_name_of(pod))
        {
            return false;
        }
        match topic(observation) {
            Some(topic) => self.only.is_empty() || self.only.contains(&topic),
            None => true,
        }
    }
}

/// Returns the topic; `None` for observations that concern every topic.
fn topic(observation: &Observation) -> Option<Topic> {
    Some(match observation {
        Observation::Answer(_)
        | Observation::Connect(_)
        | Observation::Connection(_)
        | Observation::Listener(_)
        | Observation::NameLookup(_)
        | Observation::Route(_)
        | Observation::ApiTarget(_)
        | Observation::ApiTargetGone { .. }
        | Observation::Admission(_)
        | Observation::PodCidrs(_)
        | Observation::Writes(_) => Topic::Api,
        Observation::CniConfig(_)
        | Observation::ConfAccess(_)
        | Observation::CniStart(_)
        | Observation::CniEnd(_)
        | Observation::PluginFile(_)
        | Observation::Leases(_)
        | Observation::Sandbox(_) => Topic::Cni,
        Observation::Netns(_) | Observation::NetnsName(_) => Topic::Netns,
        Observation::Link(_)
        | Observation::NetlinkError(_)
        | Observation::Ovs(_)
        | Observation::OvsPort(_)
        | Observation::OvsUpcalls(_)
        | Observation::PacketsDropped(_)
        | Observation::ModuleMissing(_)
        | Observation::RouteGone(_) => Topic::Link,
        Observation::Process(_)
        | Observation::Stuck(_)
        | Observation::SocketConnect(_)
        | Observation::Cri(_)
        | Observation::CgroupDrivers(_) => Topic::Process,
        Observation::Host(_)
        | Observation::Limit(_)
        | Observation::LimitHit(_)
        | Observation::Credential(_)
        | Observation::ClockStep { .. }
        | Observation::Sysctl { .. } => Topic::Node,
        Observation::Lost(_)
        | Observation::Throttled(_)
        | Observation::Reread { .. }
        | Observation::Gap(_)
        | Observation::GapClosed { .. }
        | Observation::Remembered(_)
        | Observation::SnapshotDone
        | Observation::Stopping => return None,
    })
}

#[cfg(test)]
mod tests {
    use probe_engine::Gap;

    use super::*;

    #[test]
    fn selects_topics_and_observations_that_concern_every_topic() {
        let filter = Filter { only: vec![Topic::Api], pod: None };
        let sysctl = Observation::Sysctl { name: "net.ipv4.ip_forward".to_owned(), value: "0".to_owned() };
        let clock = Observation::ClockStep { by_ms: 1 };
        let gap = Observation::Gap(Gap { signal: "link".to_owned(), why: String::new(), blind: false });
        let gone = Observation::ApiTargetGone { addr: "10.0.0.1:6443".parse().expect("is an address") };
        assert!(!filter.selects(&sysctl) && !filter.selects(&clock));
        assert!(filter.selects(&gap) && filter.selects(&gone));
        assert!(Filter::default().selects(&clock));
    }
}
