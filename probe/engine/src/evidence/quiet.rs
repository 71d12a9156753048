//! What ordinary life tells: it changes nothing of what is judged.

use super::{Facts, LOCAL_PORTS};
use crate::limits;
use crate::observation::{Connect, Mono, NameState, Observation};
use crate::outcome::Outcome;
use crate::rules::winner;

impl Facts {
    /// Will the judgement be the same after this as before? Asked before it is taken; false when in doubt. A busy
    /// node tells of thousands of successes a second.
    pub(crate) fn is_quiet(&self, at: Mono, observation: &Observation) -> bool {
        match observation {
            Observation::Connect(connect) => self.is_known(at, connect),
            // A plugin that is given too much time is found when its time is over.
            Observation::CniStart(start) => {
                let is_known = self.running.contains_key(&start.pid);
                start.running_ns == 0 && !is_known && !self.is_suspect(&start.plugin)
            }
            Observation::CniEnd(end) => {
                let told_late = |(_, since): &(_, Mono)| at.since(*since) >= limits::WAITS;
                let is_late = self.running.get(&end.start.pid).is_some_and(told_late);
                // Without a configuration no plugin should run.
                let is_news = !end.exit.success()
                    || !self.has_network()
                    || self.plugins.contains_key(&end.start.plugin);
                !is_late && (end.start.command != "ADD" || !is_news)
            }
            Observation::Link(_) => self.refused_links.is_empty(),
            Observation::NetnsName(name) => name.state != NameState::Stale,
            Observation::Netns(_)
            | Observation::OvsPort(_)
            | Observation::Writes(_)
            | Observation::Throttled(_)
            | Observation::Remembered(_) => true,
            _ => false,
        }
    }

    fn has_network(&self) -> bool {
        self.config.as_ref().is_some_and(|(config, _)| winner(config, self.host.runtime).is_some())
    }

    /// A plugin that something says cannot run.
    fn is_suspect(&self, plugin: &str) -> bool {
        let of_config = self.config.as_ref().is_some_and(|(config, _)| {
            let unusable = config.unusable_plugins.iter().map(|unusable| &unusable.plugin);
            config.missing_plugins.iter().chain(unusable).any(|known| known == plugin)
        });
        of_config || self.files.contains_key(plugin)
    }

    fn is_known(&self, at: Mono, connect: &Connect) -> bool {
        let Some(ledger) = self.targets.get(&connect.to).filter(|_| connect.host_netns) else {
            return !self.is_backend(&connect.to);
        };
        let outcome = Outcome::of(connect, &self.host.addresses);
        match outcome {
            Outcome::Cancelled => true,
            Outcome::Ok => {
                ledger.last_ok.is_some()
                    && !self.hits.contains_key(LOCAL_PORTS)
                    && self.routes.get(&connect.to.ip()).is_none_or(|(errno, _)| *errno == 0)
                    && ledger.failure.is_none()
                    && !ledger.denied.contains_key(&connect.role)
            }
            _ => ledger.knows(connect, outcome, self.dropped(at, connect)),
        }
    }
}
