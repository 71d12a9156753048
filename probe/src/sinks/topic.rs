//! Which observations a trace shows.

use probe_engine::{Observation, Pod};

/// What a timeline shows.
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
    /// Processes that matter.
    Process,
    /// Limits, credentials, the clock, and settings of the kernel.
    Node,
}

/// Which lines are wanted; the verdict is always shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Empty: all topics.
    pub(crate) only: Vec<Topic>,
    /// Only CNI runs for this pod.
    pub(crate) pod: Option<Pod>,
}

impl Filter {
    /// Is this observation wanted?
    pub(crate) fn wants(&self, observation: &Observation) -> bool {
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

/// Returns the topic; `None` for what limits what can be shown of every topic.
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
    fn only_the_wanted_topics_and_what_limits_them_are_shown() {
        let filter = Filter { only: vec![Topic::Api], pod: None };
        let sysctl = Observation::Sysctl { name: "net.ipv4.ip_forward".to_owned(), value: "0".to_owned() };
        let clock = Observation::ClockStep { by_ms: 1 };
        let gap = Observation::Gap(Gap { signal: "link".to_owned(), why: String::new(), blind: false });
        let gone = Observation::ApiTargetGone { addr: "10.0.0.1:6443".parse().expect("is an address") };
        assert!(!filter.wants(&sysctl) && !filter.wants(&clock));
        assert!(filter.wants(&gap) && filter.wants(&gone));
        assert!(Filter::default().wants(&clock));
    }
}
