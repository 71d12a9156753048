//! Capacities and lifetimes. Memory stays below 4 MB at 110 pods, whatever is observed. Times are nanoseconds.

/// Lines of evidence that a report carries.
pub const EVIDENCE: usize = 32;
/// API addresses. The kernel programs watch at most 256.
pub const TARGETS: usize = 256;
/// Listeners on the host that are remembered.
pub const LISTENERS: usize = 4096;
/// Plugins whose last failure is remembered.
pub const PLUGINS: usize = 64;
/// Plugins that run at the same time: 110 pods with four networks each, all at once.
pub const RUNNING: usize = 512;
/// Process names that are remembered, and processes of one name.
pub const LIVES: usize = 64;
/// Grace period of an agent, a runtime or a node after its start. flanneld writes its file within two minutes of its start,
/// and the kubelet's first restarts of a pod take less.
pub const SETTLE: u64 = 120 * SECOND;
/// The same for API servers, etcd and proxies: a static pod is back within half a minute of a change to its manifest.
pub const RESTART: u64 = 30 * SECOND;
/// How long the agent of a CNI must be absent before its configuration counts as orphaned: twice the kubelet's longest
/// back-off, five minutes.
pub const ORPHAN: u64 = 600 * SECOND;
/// How much later than its consequence a cause may be observed: the lifetime of a failed connect.
pub const CAUSE_SEEN_LATE: u64 = CONNECT_FAILURE;
/// A sandbox that lived for less than this was removed because a step after CNI failed: a pod of one UID gets a second
/// sandbox only when the first one was removed.
pub const GIVEN_UP: u64 = 60 * SECOND;
/// How long a sandbox must live at least to count as one that works: steps after CNI (image, OCI runtime) fail within seconds,
/// or take the same time again at the next attempt.
pub const SANDBOX_WORKS: u64 = 5 * SECOND;
/// Lifetime of a failed sandbox whose pod is not retried: three times the kubelet's longest wait, 15 s
/// (`backOffPeriod` 10 s with a jitter of one half, pkg/kubelet/pod_workers.go). A pod that is not retried
/// was deleted.
pub const SANDBOX_RETRY: u64 = 45 * SECOND;
/// How long a plugin without a limit of its own may run: the reference plugins take milliseconds, and the kubelet gives up a
/// sandbox after four minutes (twice its `--runtime-request-timeout`).
pub const PLUGIN_RUN: u64 = 60 * SECOND;
/// How long a meta-plugin may wait for a file before that is reported: on a node that boots, the agent of the default network
/// is a few seconds behind.
pub const WAITS: u64 = 5 * SECOND;
/// How long ovs-vswitchd may take for a change. It takes less than a second, or a few seconds for many changes at once.
pub const BEHIND: u64 = 10 * SECOND;
/// Failed connects of the kubelet to a CRI socket after which it counts as the one that the kubelet needs, if its configuration
/// is unknown: cAdvisor dials each socket once when the kubelet starts.
pub const UNKNOWN_ENDPOINT: u32 = 3;
/// Consecutive failed CRI rounds that count as a fault. The interval is 5 s, and each takes up to 2 s.
pub const CRI_FAILURES: u32 = 3;
/// Lifetime of a CRI answer that the runtime is not ready: three rounds of calls, which start every 5 s and take up to 6 s.
pub const CRI_ANSWER: u64 = 33 * SECOND;
/// Grace period for the first CRI answer after the agent's start; the deadline of a call is 2 s.
pub const CRI_FIRST: u64 = 3 * SECOND;
/// Configuration files and credentials that are remembered.
pub const FILES: usize = 64;
/// How long a runtime may take to open a changed configuration. containerd and CRI-O open it at once.
pub const LOAD: u64 = 10 * SECOND;
/// Exhausted, missing or refused objects of one kind that are remembered.
pub const FULL: usize = 64;
/// Unresolved names of API servers that are remembered. Kubeconfigs hold one or two.
pub const NAMES: usize = 16;
/// Route look-ups that are remembered.
pub const ROUTES: usize = 256;
/// Gaps that are remembered.
pub const GAPS: usize = 64;
/// Exits of control-plane processes that are remembered.
pub const EXITS: usize = 64;
/// Longest message, bytes: the limit of the verdict contract.
pub const MESSAGE: usize = 512;
/// Longest subject, bytes: enough for a path that is still readable.
pub const SUBJECT: usize = 256;
/// One second.
pub const SECOND: u64 = 1_000_000_000;
/// The newest addresses that the control plane could not reach: a handful of webhooks, and kubelets of nodes that are down.
pub const UNREACHED: usize = 64;
/// DaemonSets without pods that are remembered. A cluster has a handful.
pub const BLOCKED: usize = 8;
/// Lifetime of a failed connect that is not repeated. The agent probes every 10 s, and a client's back-off grows to 30 s:
/// two minutes without a repetition mean that the address is no longer used.
pub const CONNECT_FAILURE: u64 = 120 * SECOND;
/// How long requests of a client must be unanswered to count by themselves after an answered probe: a healthy API server
/// answers within a second, except for lists of thousands of objects.
pub const UNANSWERED: u64 = 6 * SECOND;
/// The same before any probe was answered: a probe takes up to four seconds, after the three until a silence is reported.
pub const UNANSWERED_ALONE: u64 = 7 * SECOND;
/// Consecutive silences that span this time count together: two heartbeats of the kubelet, 10 s apart.
pub const UNANSWERED_SPAN: u64 = 20 * SECOND;
/// Lifetime of silences after the last one: the kubelet waits up to 10.4 s between a failed heartbeat and the next one (10 s and
/// 4 % of jitter, pkg/kubelet/kubelet.go), whose silence is reported after three.
pub const UNANSWERED_FORGOTTEN: u64 = 14 * SECOND;
/// How long after an outage an older connection may still be unacknowledged: TCP retransmits after twice the time that it has
/// already waited, and the kubelet closes such a connection within 45 s.
pub const STALLED_LEFT_OVER: u64 = 60 * SECOND;
/// Phases of an API address that are remembered.
pub const PHASES: usize = 32;
/// Phases of an API address within this time count together: the kubelet's longest restart back-off.
pub const UNSTABLE_WINDOW: u64 = 300 * SECOND;
/// Two failures of an API address within this time are enough to count as instability: the kubelet restarts a crashing static
/// pod after 10, 20, 40 s.
pub const UNSTABLE_CYCLE: u64 = 60 * SECOND;
/// Failures of any length within [`UNSTABLE_CYCLE`] that count as instability. A rolling update of three replicas behind a load
/// balancer causes three.
pub const UNSTABLE_OFTEN: usize = 4;
/// The shortest failure of an API address that counts otherwise: a rolling update behind a load balancer takes a second.
pub const UNSTABLE_AWAY: u64 = 3 * SECOND;
/// The shortest time that an API address must work to end a period of failure.
pub const UNSTABLE_BLINK: u64 = 2 * SECOND;
/// Connections that are closed within this time of each other count as closed by the same event. The kernel closes all sockets
/// of an exiting process within a millisecond.
pub const TOGETHER: u64 = SECOND / 10;
/// The shortest time that an unstable address must work to count as stable.
pub const UNSTABLE_REST: u64 = 15 * SECOND;
/// How long before and after it is observed a full connection tracking table explains drops: it is polled every 5 s, and a
/// dropped connect ends after 10 s at the latest.
pub const CONNTRACK_SEEN_LATE: u64 = 15 * SECOND;
/// How long a host that rejected connections by ICMP may be silent before that counts as silence: a minute of clients that try
/// every few seconds.
pub const ICMP_SILENCE: u64 = 60 * SECOND;
/// Lifetime of a failure of an agent: the kubelet restarts a container after at most 5 minutes (its back-off limit), so a
/// failure that persists is observed twice in this time.
pub const AGENT_FAILURE: u64 = 600 * SECOND;
/// Crashes within [`CRASH_WINDOW`] that make a crash loop. The kubelet's restart back-off is 10, 20, 40, … seconds: three
/// crashes take 70 s.
pub const CRASHES: usize = 3;
/// See [`CRASHES`].
pub const CRASH_WINDOW: u64 = 600 * SECOND;
/// How long after the last crash a loop ends: longer than the kubelet's first back-offs.
pub const CRASH_REST: u64 = 120 * SECOND;
/// The shortest time that a process must run to count as up again: a process that fails at its start does so within seconds.
pub const UP_AGAIN: u64 = 10 * SECOND;
/// A loss after which the state was not read again in this time makes the condition Unknown. Reading takes milliseconds.
pub const REREAD: u64 = 5 * SECOND;
/// How long events must keep being lost until reading the state again no longer compensates for it.
pub const LOSING: u64 = 10 * SECOND;
/// How long after the last lost event a continued loss ends. The agent reads the counters four times a second.
pub const LOSING_REST: u64 = 5 * SECOND;
/// How long a finding between the kubelet and the API server must last to be certain: two probes, which are ten seconds apart.
/// A rotation of a file completes within one.
pub const CONFIRMED: u64 = 10 * SECOND;
/// How long an accepted credential counts against a refusal by another API server: the longest time between two probes of a
/// healthy one, five minutes and a fifth.
pub const ACCEPTED: u64 = 360 * SECOND;

use alloc::string::String;

/// Returns `text` with at most `max` bytes, truncated at a character boundary and marked with `…`.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
